// The host kernels: tiles of neurons, time outside, lanes inside, so that the compiler vectorises.
#pragma once
#include "neuron.cuh"

namespace snn {

constexpr int LANES = 1024;

#define SNN_LANES _Pragma("omp simd") for (int i = 0; i < lanes; ++i)

template <class T> SNN_INLINE T* at(const Steps& s, i64 t, i64 n) { return (T*)s.data + (t * s.step + n); }

// Values of one parameter for the neurons of a tile.
template <class R> struct Row {
    alignas(64) R lane[LANES];

    void fill(const Parameter& p, i64 offset, i64 begin, int lanes) {
        const R* data = (const R*)p.data + offset;
        if (!p.data || p.period == 1) {
            R value = p.data ? *data : R(p.value);
            for (int i = 0; i < lanes; ++i) lane[i] = value;
            return;
        }
        for (int i = 0; i < lanes;) {
            i64 n = begin + i, run = (p.inner == 1 ? p.period - n % p.period : p.inner - n % p.inner);
            int stop = run < lanes - i ? i + int(run) : lanes;
            const R* from = data + (n / p.inner) % p.period;
            if (p.inner == 1)
                __builtin_memcpy(lane + i, from, (stop - i) * sizeof(R));
            else
                for (int k = i; k < stop; ++k) lane[k] = *from;
            i = stop;
        }
    }
};

// Parameters of the neurons of a tile: the same for all (UNIFORM), or a row of each.
template <class R> SNN_INLINE R single(const Parameter& p) { return p.data ? *(const R*)p.data : R(p.value); }
inline bool uniform(const Parameter& p) { return !p.data || p.period == 1; }
inline bool uniform(const Arguments& a) {
    return uniform(a.decay) && uniform(a.gain) && uniform(a.offset) && uniform(a.threshold);
}

template <class S, bool UNIFORM> struct Tile {
    using R = typename S::state;
    Neuron<R> one;
    Row<R> decay, gain, offset, threshold, folded, sign, scale, shift;

    void fill(const Arguments& a, i64 begin, int lanes) {
        one = {single<R>(a.decay), single<R>(a.gain), single<R>(a.offset), single<R>(a.threshold), 0, 0,
               R(a.rest), R(a.surrogate_a), R(a.surrogate_b)};
        if constexpr (!UNIFORM) {
            decay.fill(a.decay, 0, begin, lanes);
            gain.fill(a.gain, 0, begin, lanes);
            offset.fill(a.offset, 0, begin, lanes);
            threshold.fill(a.threshold, 0, begin, lanes);
        }
        if constexpr (S::folded) {
            folded.fill(a.folded, 0, begin, lanes);
            sign.fill(a.sign, 0, begin, lanes);
        }
    }

    void fill_affine(const Arguments& a, i64 t, i64 begin, int lanes) {
        if constexpr (S::affine) {
            scale.fill(a.scale, t * a.scale_step, begin, lanes);
            shift.fill(a.shift, t * a.shift_step, begin, lanes);
        }
    }

    SNN_INLINE Neuron<R> neuron(int i) const {
        return {UNIFORM ? one.decay : decay.lane[i],
                UNIFORM ? one.gain : gain.lane[i],
                UNIFORM ? one.offset : offset.lane[i],
                UNIFORM ? one.threshold : threshold.lane[i],
                S::folded ? folded.lane[i] : R(0),
                S::folded ? sign.lane[i] : R(0),
                one.rest,
                one.a,
                one.b};
    }

    SNN_INLINE R input(R x, int i) const {
        if constexpr (S::affine) return scale.lane[i] * x + shift.lane[i];
        return x;
    }
};

// The first membranes, and the resets that are due before the first step.
template <class S, bool U, class R>
void start(const Arguments& a, const Tile<S, U>& tile, i64 begin, int lanes, Row<R>& v, Row<R>& r) {
    if (a.has_v0)
        v.fill(a.v0, 0, begin, lanes);
    else
        for (int i = 0; i < lanes; ++i) v.lane[i] = a.v ? R(0) : R(a.rest);
    const R* carried = (const R*)a.v + begin;
    for (int i = 0; i < lanes; ++i) r.lane[i] = R(0);
    if (S::delayed && a.v && a.resume)
        for (int i = 0; i < lanes; ++i) r.lane[i] = spike<S>(carried[i], tile.neuron(i));
    if (a.v && a.has_v0)
        for (int i = 0; i < lanes; ++i) v.lane[i] = carried[i] + v.lane[i];
    else if (a.v)
        for (int i = 0; i < lanes; ++i) v.lane[i] = carried[i];
}

// All steps of one tile. h: where to put charged membranes, `step` apart (0: nowhere to keep).
template <class S, bool U>
void forward_tile(const Arguments& a, i64 begin, int lanes, Tile<S, U>& tile, typename S::state* h_to,
                  i64 h_step, bool outputs) {
    using R = typename S::state;
    using IO = typename S::io;
    Row<R> v, r;
    Row<IO> unused;
    start(a, tile, begin, lanes, v, r);
    for (i64 t = 0; t < a.steps; ++t) {
        const IO* __restrict x = at<IO>(a.x, t, begin);
        IO* __restrict s = outputs ? at<IO>(a.spikes, t, begin) : unused.lane;
        R* __restrict h = h_to + t * h_step;
        R* __restrict vs = v.lane;
        R* __restrict rs = r.lane;
        tile.fill_affine(a, t, begin, lanes);
        SNN_LANES {
            R vi = vs[i], ri = rs[i], hi;
            R si = forward_step<S>(tile.input(widen(x[i]), i), vi, ri, hi, tile.neuron(i));
            narrow(si, s[i]);
            h[i] = hi;
            vs[i] = vi;
            if constexpr (S::delayed) rs[i] = ri;
        }
        if (outputs && a.membranes.data) __builtin_memcpy(at<R>(a.membranes, t, begin), vs, lanes * sizeof(R));
    }
    if (outputs) __builtin_memcpy((R*)a.membrane + begin, v.lane, lanes * sizeof(R));
}

template <class S, bool U> void forward_lanes(const Arguments& a, i64 begin, int lanes) {
    using R = typename S::state;
    Tile<S, U> tile;
    Row<R> unused;
    tile.fill(a, begin, lanes);
    R* h = a.h.data ? at<R>(a.h, 0, begin) : unused.lane;
    forward_tile(a, begin, lanes, tile, h, a.h.data ? a.h.step : 0, true);
}

// All steps of one tile back. grad_v_to: where to put the gradients of the first membranes (null: not asked for).
template <class S, bool U>
void backward_lanes(const Arguments& a, i64 begin, int lanes, typename S::state* scratch,
                    typename S::state* grad_v_to) {
    using R = typename S::state;
    using IO = typename S::io;
    Tile<S, U> tile;
    Row<R> grad_v, grad_h, grad_decay, grad_threshold, last, before, due, zero;
    Row<IO> no_spikes;
    for (int i = 0; i < lanes; ++i) zero.lane[i] = R(0);
    for (int i = 0; i < lanes; ++i) narrow(R(0), no_spikes.lane[i]);
    tile.fill(a, begin, lanes);
    const R* h_from = a.h.data ? at<R>(a.h, 0, begin) : scratch;
    i64 h_step = a.h.data ? a.h.step : lanes;
    if (!a.h.data) forward_tile(a, begin, lanes, tile, scratch, lanes, false);
    for (int i = 0; i < lanes; ++i) grad_v.lane[i] = grad_h.lane[i] = R(0);
    for (int i = 0; i < lanes; ++i) grad_decay.lane[i] = grad_threshold.lane[i] = R(0);
    // Gradients of the membrane after the last step.
    const R* final = a.grad_membrane ? (const R*)a.grad_membrane + begin : zero.lane;
    const R* stored = a.grad_membranes.data ? at<R>(a.grad_membranes, a.steps - 1, begin) : zero.lane;
    for (int i = 0; i < lanes; ++i) last.lane[i] = final[i] + stored[i];
    for (i64 t = a.steps - 1; t >= 0; --t) {
        const R* __restrict h = h_from + t * h_step;
        const IO* __restrict x = at<IO>(a.x, t, begin);
        const IO* __restrict gs = a.grad_spikes.data ? at<IO>(a.grad_spikes, t, begin) : no_spikes.lane;
        const R* __restrict gm = zero.lane;
        if (t == a.steps - 1)
            gm = last.lane;
        else if (a.grad_membranes.data)
            gm = at<R>(a.grad_membranes, t, begin);
        IO* __restrict gx = at<IO>(a.grad_x, t, begin);
        tile.fill_affine(a, t, begin, lanes);
        if constexpr (S::learn) {
            if (t == 0) {
                start(a, tile, begin, lanes, before, due);
                if constexpr (S::delayed && S::reset == HARD)
                    SNN_LANES before.lane[i] = reset<S>(before.lane[i], due.lane[i], tile.neuron(i));
            } else {
                const R* __restrict earlier = h_from + (t - 1) * h_step;
                SNN_LANES {
                    Neuron<R> p = tile.neuron(i);
                    before.lane[i] = charged_from<S>(earlier[i], spike<S>(earlier[i], p), p);
                }
            }
        }
        R* __restrict gv = grad_v.lane;
        R* __restrict gh = grad_h.lane;
        SNN_LANES {
            Neuron<R> p = tile.neuron(i);
            Gradients<R> g = {gv[i], R(0), R(0), R(0)};
            R xi = R(0), bi = R(0);
            if constexpr (S::delayed && S::reset == SOFT) g.h = gh[i];
            if constexpr (S::learn) {
                g.decay = grad_decay.lane[i];
                g.threshold = grad_threshold.lane[i];
                bi = before.lane[i];
                if constexpr (S::leaks_input) xi = tile.input(widen(x[i]), i);
            }
            backward_step<S>(h[i], xi, bi, widen(gs[i]), gm[i], g, p);
            R grad_input = g.h * input_share<S>(p);
            if constexpr (S::affine) grad_input = a.unscaled ? grad_input : grad_input * tile.scale.lane[i];
            narrow(grad_input, gx[i]);
            gv[i] = g.v;
            if constexpr (S::delayed && S::reset == SOFT) gh[i] = g.h;
            if constexpr (S::learn) {
                grad_decay.lane[i] = g.decay;
                grad_threshold.lane[i] = g.threshold;
            }
        }
    }
    if (!grad_v_to && !S::learn) return;
    if (S::delayed && a.resume) {
        start(a, tile, begin, lanes, before, due);
        SNN_LANES {
            Gradients<R> g = {grad_v.lane[i], grad_h.lane[i], R(0), grad_threshold.lane[i]};
            backward_start<S>(due.lane[i], g, tile.neuron(i));
            grad_v.lane[i] = g.v;
            grad_threshold.lane[i] = g.threshold;
        }
    }
    size_t bytes = lanes * sizeof(R);
    if (grad_v_to) __builtin_memcpy(grad_v_to, grad_v.lane, bytes);
    if (a.grad_decay) __builtin_memcpy((R*)a.grad_decay + begin, grad_decay.lane, bytes);
    if (a.grad_threshold) __builtin_memcpy((R*)a.grad_threshold + begin, grad_threshold.lane, bytes);
}

// The same for one tile of every sample: the sum stays in the cache, where an array of the batch would not.
template <class S, bool U>
void backward_samples(const Arguments& a, i64 begin, int lanes, typename S::state* scratch) {
    Row<typename S::state> total, sample;
    for (int i = 0; i < lanes; ++i) total.lane[i] = 0;
    for (i64 first = begin; first < a.neurons; first += a.shared) {
        backward_lanes<S, U>(a, first, lanes, scratch, sample.lane);
        SNN_LANES total.lane[i] += sample.lane[i];
    }
    __builtin_memcpy((typename S::state*)a.grad_v + begin, total.lane, lanes * sizeof(total.lane[0]));
}

}  // namespace snn
