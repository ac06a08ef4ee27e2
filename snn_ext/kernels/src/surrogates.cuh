// Derivatives and primitives of the surrogates; constants a and b are made from alpha in spec.py.
#pragma once
#include "portable.cuh"
#ifndef __CUDACC__
#include <cmath>
#endif

namespace snn {

enum Surrogate { ATAN, SIGMOID, PIECEWISE_QUADRATIC, FAST_SIGMOID, RECTANGLE };

template <class R> SNN_INLINE R absolute(R u) { return u < 0 ? -u : u; }

// e^-z for z >= 0, in plain arithmetic so that it vectorises; relative error below 2e-7.
SNN_INLINE float exp_minus(float z) {
    float y = z < 87.0f ? -z : -87.0f;
    float shifted = y * 1.44269504f + 12582912.0f;  // rounds to an integer in the low bits
    float n = shifted - 12582912.0f;
    float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return from_bits(bits(p) + (bits(shifted) << 23));
}

#ifndef __CUDACC__
SNN_INLINE double exp_minus(double z) { return std::exp(-z); }
#endif

// psi(u) = dS/dH.
template <int KIND, class R> SNN_INLINE R derivative(R u, R a, R b) {
    if constexpr (KIND == ATAN) {
        R w = b * u;
        return a / (R(1) + w * w);
    } else if constexpr (KIND == SIGMOID) {
        R e = exp_minus(absolute(a * u));
        R d = R(1) + e;
        return a * e / (d * d);
    } else if constexpr (KIND == PIECEWISE_QUADRATIC) {
        R height = a - b * absolute(u);
        return height < 0 ? R(0) : height;
    } else if constexpr (KIND == FAST_SIGMOID) {
        R d = R(1) + a * absolute(u);
        return R(1) / (d * d);
    } else {
        return absolute(u) < b ? a : R(0);
    }
}

#ifndef __CUDACC__
// The function whose derivative is psi: the spike in smooth mode (gradient checks).
template <int KIND> SNN_INLINE double primitive(double u, double a, double b) {
    if constexpr (KIND == ATAN) {
        return std::atan(b * u) / 3.14159265358979323846 + 0.5;
    } else if constexpr (KIND == SIGMOID) {
        return 1.0 / (1.0 + std::exp(-a * u));
    } else if constexpr (KIND == PIECEWISE_QUADRATIC) {
        double w = a * u, c = w < -1 ? -1 : (w > 1 ? 1 : w);
        return 0.5 + c - 0.5 * c * absolute(c);
    } else if constexpr (KIND == FAST_SIGMOID) {
        return 0.5 + u / (1.0 + a * absolute(u));
    } else {
        double w = a * u + 0.5;
        return w < 0 ? 0 : (w > 1 ? 1 : w);
    }
}
#endif

}  // namespace snn
