// One step of one neuron, forward and backward: the equations of snn_ext.dynamics.functional, in the
// same order of operations, so that spikes are equal to the last bit. No loops, no memory.
#pragma once
#include "numbers.cuh"
#include "surrogates.cuh"

namespace snn {

enum Charge { PLAIN, LEAK_INPUT_DIVIDE, LEAK_INPUT_MULTIPLY, LEAK_DIVIDE, LEAK_MULTIPLY };
enum Reset { NONE, SOFT, HARD };

template <class T> struct StateOf { using type = float; };
template <> struct StateOf<double> { using type = double; };

// What is known when a kernel is compiled; fields in the order of Spec in spec.py.
template <int CHARGE, int RESET, bool DELAYED, bool EQUALITY, bool DETACH, int SURROGATE, bool FOLDED,
          bool AFFINE, bool LEARN, bool SMOOTH, int UNROLLED, class IO>
struct Spec {
    static constexpr int charge = CHARGE;
    static constexpr bool divides = CHARGE == LEAK_INPUT_DIVIDE || CHARGE == LEAK_DIVIDE;
    static constexpr bool leaks_input = CHARGE == LEAK_INPUT_DIVIDE || CHARGE == LEAK_INPUT_MULTIPLY;
    static constexpr int reset = RESET;
    static constexpr bool delayed = DELAYED;
    static constexpr bool equality = EQUALITY;
    static constexpr bool detach = DETACH;
    static constexpr int surrogate = SURROGATE;
    static constexpr bool folded = FOLDED;
    static constexpr bool affine = AFFINE;
    static constexpr bool learn = LEARN;        // per-neuron sums for decay and threshold
    static constexpr bool smooth = SMOOTH;
    static constexpr int unrolled = UNROLLED;   // CUDA: T when h is computed again in registers, else 0
    using io = IO;
    using state = typename StateOf<IO>::type;
    // Specialisations that differ in the backward only share their forward.
    using ahead = Spec<CHARGE, RESET, DELAYED, EQUALITY, false, SMOOTH ? SURROGATE : ATAN, FOLDED, AFFINE, false,
                       SMOOTH, UNROLLED, IO>;
};

template <class R> struct Neuron {
    R decay, gain, offset, threshold, folded, sign;  // per neuron
    R rest, a, b;                                    // the same for all
};

template <class S, class R> SNN_INLINE R charge(R x, R v, const Neuron<R>& p) {
    if constexpr (S::charge == PLAIN) {
        return p.decay * v + p.gain * x + p.offset;
    } else {
        R distance = v - p.rest;
        R lost = S::leaks_input ? x - distance : distance;
        lost = S::divides ? lost / p.decay : lost * p.decay;
        return S::leaks_input ? v + lost : v - lost + x;
    }
}

template <class S, class R> SNN_INLINE R spike(R h, const Neuron<R>& p) {
    if constexpr (S::folded) {
        bool above = S::equality ? h >= p.folded : h > p.folded;
        bool below = S::equality ? h <= p.folded : h < p.folded;
        return (p.sign > 0 ? above : below) ? R(1) : R(0);
    } else {
        R u = h - p.threshold;
#ifndef __CUDACC__
        if constexpr (S::smooth) return primitive<S::surrogate>(u, p.a, p.b);
#endif
        return (S::equality ? u >= 0 : u > 0) ? R(1) : R(0);
    }
}

template <class S, class R> SNN_INLINE R reset(R v, R s, const Neuron<R>& p) {
    if constexpr (S::reset == HARD) return v * (R(1) - s) + p.rest * s;
    if constexpr (S::reset == SOFT) return v - p.threshold * s;
    return v;
}

// Takes the membrane v and, with delayed timing, the spike r whose reset is due, to the next step.
// Leaves in h what the spike was decided on.
template <class S, class R> SNN_INLINE R forward_step(R x, R& v, R& r, R& h, const Neuron<R>& p) {
    constexpr bool before = S::delayed && S::reset == HARD, after = S::delayed && S::reset == SOFT;
    R start = before ? reset<S>(v, r, p) : v;
    h = charge<S>(x, start, p);
    if constexpr (after) h = reset<S>(h, r, p);
    R s = spike<S>(h, p);
    v = S::delayed ? h : reset<S>(h, s, p);
    r = s;
    return s;
}

// The potential that the charge of the next step reads, after a step that charged h.
template <class S, class R> SNN_INLINE R charged_from(R h, R s, const Neuron<R>& p) {
    return S::delayed && S::reset == SOFT ? h : reset<S>(h, s, p);
}

template <class R> struct Gradients {
    R v;          // of the potential that the charge of the next step reads
    R h;          // of h of the next step (delayed soft resets act on it)
    R decay;      // sums
    R threshold;
};

// Share of the membrane and of the input in h: dh/dv and dh/dx.
template <class S, class R> SNN_INLINE R membrane_share(const Neuron<R>& p) {
    return S::charge == PLAIN ? p.decay : R(1) - (S::divides ? R(1) / p.decay : p.decay);
}
template <class S, class R> SNN_INLINE R input_share(const Neuron<R>& p) {
    if constexpr (S::charge == PLAIN) return p.gain;
    return S::leaks_input ? (S::divides ? R(1) / p.decay : p.decay) : R(1);
}

// One step back. grad_s, grad_m: gradients of the spike and of the membrane after the step. `x` and
// `before` (what the charge read) matter to the sum for the decay only. Leaves the gradient of h in g.h.
template <class S, class R>
SNN_INLINE void backward_step(R h, R x, R before, R grad_s, R grad_m, Gradients<R>& g, const Neuron<R>& p) {
    R u = h - p.threshold;
    R bump = derivative<S::surrogate>(u, p.a, p.b);
    R s = spike<S>(h, p);
    R of_reset = S::delayed ? g.v : g.v + grad_m;
    R of_soft = S::delayed ? g.h : of_reset;
    if constexpr (!S::detach && S::reset == HARD) grad_s = grad_s + of_reset * (p.rest - h);
    if constexpr (!S::detach && S::reset == SOFT) grad_s = grad_s - of_soft * p.threshold;
    R of_fire = grad_s * bump;
    R grad_h = of_fire + (S::reset == HARD ? of_reset * (R(1) - s) : of_reset);
    if constexpr (S::delayed) grad_h = grad_h + grad_m;
    if constexpr (S::learn) {
        g.threshold = g.threshold - of_fire;
        if constexpr (S::reset == SOFT) g.threshold = g.threshold - of_soft * s;
        R distance = before - p.rest;
        R factor = S::charge == PLAIN ? distance : (S::leaks_input ? x - distance : -distance);
        if constexpr (S::divides) factor = -factor / (p.decay * p.decay);
        g.decay = g.decay + grad_h * factor;
    }
    g.h = grad_h;
    g.v = grad_h * membrane_share<S>(p);
}

// The reset that was due before the first step: from the gradient of what the first charge read to that
// of the carried membrane. The decision itself passes no gradient.
template <class S, class R> SNN_INLINE void backward_start(R r, Gradients<R>& g, const Neuron<R>& p) {
    if constexpr (S::delayed && S::reset == HARD) g.v = g.v * (R(1) - r);
    if constexpr (S::delayed && S::reset == SOFT && S::learn) g.threshold = g.threshold - g.h * r;
}

}  // namespace snn
