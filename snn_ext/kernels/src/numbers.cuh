// Types of inputs and outputs: float, half, bfloat and double. The state is float (double for double).
#pragma once
#include "portable.cuh"

namespace snn {

struct Half { unsigned short raw; };
struct BFloat { unsigned short raw; };

SNN_INLINE float widen(float value) { return value; }
SNN_INLINE double widen(double value) { return value; }
SNN_INLINE float widen(BFloat value) { return from_bits(unsigned(value.raw) << 16); }
SNN_INLINE float widen(Half value) {
    unsigned magnitude = value.raw & 0x7fffu;
    unsigned sign = (value.raw & 0x8000u) << 16;
    unsigned special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinite or not a number
    float scaled = from_bits(magnitude << 13) * 0x1p112f;        // exact, subnormal numbers too
    return from_bits(bits(scaled) | special | sign);
}

// Round to nearest, ties to even, as torch does.
SNN_INLINE void narrow(float value, float& out) { out = value; }
SNN_INLINE void narrow(double value, double& out) { out = value; }
SNN_INLINE void narrow(float value, BFloat& out) {
    unsigned u = bits(value);
    unsigned rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    out.raw = (unsigned short)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
SNN_INLINE void narrow(float value, Half& out) {
    unsigned sign = bits(value) & 0x80000000u;
    unsigned u = bits(value) ^ sign;
    // Below 2^-14 a half has fixed spacing: adding 1/2 makes the adder round to it.
    unsigned subnormal = bits(from_bits(u) + 0.5f) - 0x3f000000u;
    unsigned normal = (u + 0xc8000fffu + ((u >> 13) & 1u)) >> 13;  // exponent from bias 127 to 15
    unsigned special = u > 0x7f800000u ? 0x7e00u : 0x7c00u;
    unsigned magnitude = u < 0x38800000u ? subnormal : (u < 0x47800000u ? normal : special);
    out.raw = (unsigned short)(magnitude | (sign >> 16));
}

}  // namespace snn
