"""The import names of other kits, mapped onto onebit: `phase4_bitnet` and `onebitllms`. Nothing new is here."""
