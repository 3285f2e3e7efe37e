#ifndef MATH_H
#define MATH_H
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isnan(x) __builtin_isnan(x)
#define isinf(x) __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)
double fabs(double), sqrt(double), floor(double), ceil(double), fmax(double, double), fmin(double, double);
float fabsf(float), sqrtf(float), rintf(float), fmaxf(float, float), fminf(float, float), nextafterf(float, float);
double exp(double), tanh(double), log(double), sin(double), cos(double), pow(double, double), ldexp(double, int);
#endif
