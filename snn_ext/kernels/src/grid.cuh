// The device kernels: a thread takes one neuron through all steps, its state in registers.
// Memory is touched only through `load` and `store`, which the emulation replaces.
#pragma once
#include "neuron.cuh"

namespace snn {

#ifndef SNN_EMULATED
template <class T> SNN_INLINE T load(const T* p, i64 i) { return p[i]; }
template <class T> SNN_INLINE void store(T* p, i64 i, T value) { p[i] = value; }
#endif

// Which value of a parameter neuron n has; 64-bit division is slow on a GPU.
SNN_INLINE i64 place(const Parameter& p, i64 n) {
    if (p.period == 1) return 0;
    if ((n | p.inner | p.period) >> 32) return (n / p.inner) % p.period;
    return (unsigned(n) / unsigned(p.inner)) % unsigned(p.period);
}

template <class R> SNN_INLINE R value(const Parameter& p, i64 n, i64 offset = 0) {
    return p.data ? load((const R*)p.data, offset + place(p, n)) : R(p.value);
}

template <class S> struct Cell {
    using R = typename S::state;
    using IO = typename S::io;
    const Arguments& a;
    i64 n;
    Neuron<R> p;

    SNN_INLINE Cell(const Arguments& a, i64 n) : a(a), n(n) {
        p = {value<R>(a.decay, n), value<R>(a.gain, n), value<R>(a.offset, n), value<R>(a.threshold, n), 0, 0,
             R(a.rest), R(a.surrogate_a), R(a.surrogate_b)};
        if constexpr (S::folded) {
            p.folded = value<R>(a.folded, n);
            p.sign = value<R>(a.sign, n);
        }
    }

    SNN_INLINE R raw(i64 t) const { return widen(load((const IO*)a.x.data, t * a.x.step + n)); }
    SNN_INLINE R scale(i64 t) const { return value<R>(a.scale, n, t * a.scale_step); }
    SNN_INLINE R input(R x, i64 t) const {
        if constexpr (S::affine) return scale(t) * x + value<R>(a.shift, n, t * a.shift_step);
        return x;
    }

    // The first membrane, and the spike whose delayed reset is due.
    SNN_INLINE void start(R& v, R& r) const {
        r = R(0);
        if (a.v) {
            v = load((const R*)a.v, n);
            if (S::delayed && a.resume) r = spike<S>(v, p);
            if (a.has_v0) v = v + value<R>(a.v0, n);
        } else {
            v = a.has_v0 ? value<R>(a.v0, n) : p.rest;
        }
    }

    SNN_INLINE R step(R x, i64 t, R& v, R& r) const {
        R h;
        R s = forward_step<S>(input(x, t), v, r, h, p);
        IO out;
        narrow(s, out);
        store((IO*)a.spikes.data, t * a.spikes.step + n, out);
        if (a.h.data) store((R*)a.h.data, t * a.h.step + n, h);
        if (a.membranes.data) store((R*)a.membranes.data, t * a.membranes.step + n, v);
        return h;
    }

    SNN_INLINE void forward() const {
        R v, r;
        start(v, r);
        if constexpr (S::unrolled > 0) {
            R x[S::unrolled];  // all reads are on their way before the first is needed
#pragma unroll
            for (int t = 0; t < S::unrolled; ++t) x[t] = raw(t);
#pragma unroll
            for (int t = 0; t < S::unrolled; ++t) step(x[t], t, v, r);
        } else {
            for (i64 t = 0; t < a.steps; ++t) step(raw(t), t, v, r);
        }
        store((R*)a.membrane, n, v);
    }

    // Gradient of x at step t; `earlier` is h of step t - 1, `first` what the first charge read.
    SNN_INLINE void back(i64 t, i64 last, R h, R earlier, R first, R x, Gradients<R>& g) const {
        R grad_s = R(0), grad_m = R(0), before = R(0);
        if (a.grad_spikes.data)
            grad_s = widen(load((const IO*)a.grad_spikes.data, t * a.grad_spikes.step + n));
        if (a.grad_membranes.data) grad_m = load((const R*)a.grad_membranes.data, t * a.grad_membranes.step + n);
        if (t == last && a.grad_membrane) grad_m = load((const R*)a.grad_membrane, n) + grad_m;
        if constexpr (S::learn) before = t == 0 ? first : charged_from<S>(earlier, spike<S>(earlier, p), p);
        backward_step<S>(h, input(x, t), before, grad_s, grad_m, g, p);
        R grad_x = g.h * input_share<S>(p);
        if constexpr (S::affine) grad_x = a.unscaled ? grad_x : grad_x * scale(t);
        IO out;
        narrow(grad_x, out);
        store((IO*)a.grad_x.data, t * a.grad_x.step + n, out);
    }

    SNN_INLINE void backward() const {
        Gradients<R> g = {R(0), R(0), R(0), R(0)};
        R v = R(0), r = R(0);
        if (S::unrolled > 0 || S::learn || (S::delayed && a.resume)) start(v, r);
        R first = v;
        if constexpr (S::learn && S::delayed && S::reset == HARD) first = reset<S>(v, r, p);
        R due = r;
        if constexpr (S::unrolled > 0) {
            R x[S::unrolled], h[S::unrolled];
#pragma unroll
            for (int t = 0; t < S::unrolled; ++t) x[t] = raw(t);
#pragma unroll
            for (int t = 0; t < S::unrolled; ++t) forward_step<S>(input(x[t], t), v, r, h[t], p);
#pragma unroll
            for (int t = S::unrolled - 1; t >= 0; --t)
                back(t, S::unrolled - 1, h[t], t > 0 ? h[t > 0 ? t - 1 : 0] : R(0), first, x[t], g);
        } else {
            const R* h = (const R*)a.h.data;
            R now = load(h, (a.steps - 1) * a.h.step + n);
            for (i64 t = a.steps - 1; t >= 0; --t) {
                R earlier = t > 0 ? load(h, (t - 1) * a.h.step + n) : R(0);
                R x = S::learn && S::leaks_input ? raw(t) : R(0);
                back(t, a.steps - 1, now, earlier, first, x, g);
                now = earlier;
            }
        }
        backward_start<S>(due, g, p);
        if (a.grad_v) store((R*)a.grad_v, n, g.v);
        if constexpr (S::learn) {
            if (a.grad_decay) store((R*)a.grad_decay, n, g.decay);
            if (a.grad_threshold) store((R*)a.grad_threshold, n, g.threshold);
        }
    }
};

}  // namespace snn

// Threads, blocks and their indices: the device's own, or the emulation's.
#define SNN_NEURONS(n, a)                                                                   \
    for (snn::i64 n = snn::i64(blockIdx.x) * blockDim.x + threadIdx.x; n < (a).neurons;     \
         n += snn::i64(gridDim.x) * blockDim.x)
