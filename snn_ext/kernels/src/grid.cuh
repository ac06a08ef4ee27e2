// The device kernels: a thread takes LANES neighbouring neurons through all steps, state in registers.
// Memory is touched only through `load` and `store`, which the emulation replaces.
#pragma once
#include "neuron.cuh"

namespace snn {

#ifndef SNN_EMULATED
template <class T> SNN_INLINE T load(const T* p) { return *p; }
template <class T> SNN_INLINE void store(T* p, T value) { *p = value; }
#endif

// What one thread reads or writes at once; the launcher sees to the alignment.
template <class T, int LANES> struct alignas(LANES * sizeof(T)) Pack { T lane[LANES]; };

// Which value of a parameter neuron n has; 64-bit division is slow on a GPU.
SNN_INLINE i64 place(const Parameter& p, i64 n) {
    if (!p.data || p.period == 1) return 0;
    if ((n | p.inner | p.period) >> 32) return (n / p.inner) % p.period;
    return (unsigned(n) / unsigned(p.inner)) % unsigned(p.period);
}
template <class R> SNN_INLINE R read(const Parameter& p, i64 place) {
    return p.data ? load((const R*)p.data + place) : R(p.value);
}
template <class R> SNN_INLINE R read_of(const Parameter& p, i64 n) { return read<R>(p, place(p, n)); }

// The same number, of which the compiler knows nothing: without this, unrolled loops keep the addresses of
// all steps in registers, 128 of them instead of 48.
SNN_INLINE i64 apart(i64 offset) {
#ifdef __CUDACC__
    asm volatile("" : "+l"(offset));
#endif
    return offset;
}

#define SNN_EACH _Pragma("unroll") for (int k = 0; k < LANES; ++k)

template <class S, int LANES> struct Cell {
    using R = typename S::state;
    using IO = typename S::io;
    using Reals = Pack<R, LANES>;
    using Values = Pack<IO, LANES>;
    static constexpr int U = S::unrolled > 0 ? S::unrolled : 1;

    const Arguments& a;
    i64 n;  // the first of the neurons
    Neuron<R> p[LANES];
    i64 scale_at[LANES], shift_at[LANES];

    SNN_INLINE Cell(const Arguments& a, i64 n) : a(a), n(n) {
        SNN_EACH {
            p[k] = {read_of<R>(a.decay, n + k), read_of<R>(a.gain, n + k), read_of<R>(a.offset, n + k),
                    read_of<R>(a.threshold, n + k), 0, 0, R(a.rest), R(a.surrogate_a), R(a.surrogate_b)};
            if constexpr (S::folded) {
                p[k].folded = read_of<R>(a.folded, n + k);
                p[k].sign = read_of<R>(a.sign, n + k);
            }
            if constexpr (S::affine) {
                scale_at[k] = place(a.scale, n + k);
                shift_at[k] = place(a.shift, n + k);
            }
        }
    }

    template <class T> SNN_INLINE Pack<T, LANES> from(const void* data, i64 offset = 0) const {
        return load((const Pack<T, LANES>*)((const T*)data + (apart(offset) + n)));
    }
    template <class T> SNN_INLINE void to(void* data, const Pack<T, LANES>& values, i64 offset = 0) const {
        store((Pack<T, LANES>*)((T*)data + (apart(offset) + n)), values);
    }
    SNN_INLINE Values raw(i64 t) const { return from<IO>(a.x.data, t * a.x.step); }
    SNN_INLINE R scale(i64 t, int k) const {
        return read<R>(a.scale, apart(t * a.scale_step) + scale_at[k]);
    }
    SNN_INLINE R input(const Values& x, i64 t, int k) const {
        R value = widen(x.lane[k]);
        if constexpr (S::affine)
            return scale(t, k) * value + read<R>(a.shift, apart(t * a.shift_step) + shift_at[k]);
        return value;
    }

    // The first membranes, and the spikes whose delayed reset is due.
    SNN_INLINE void start(Reals& v, Reals& r) const {
        SNN_EACH v.lane[k] = p[k].rest, r.lane[k] = R(0);
        if (a.v) {
            v = from<R>(a.v);
            if (S::delayed && a.resume)
                SNN_EACH r.lane[k] = spike<S>(v.lane[k], p[k]);
            if (a.has_v0)
                SNN_EACH v.lane[k] = v.lane[k] + read_of<R>(a.v0, n + k);
        } else if (a.has_v0) {
            SNN_EACH v.lane[k] = read_of<R>(a.v0, n + k);
        }
    }

    SNN_INLINE void step(const Values& x, i64 t, Reals& v, Reals& r) const {
        Values s;
        Reals h;
        SNN_EACH narrow(forward_step<S>(input(x, t, k), v.lane[k], r.lane[k], h.lane[k], p[k]), s.lane[k]);
        to<IO>(a.spikes.data, s, t * a.spikes.step);
        if (a.h.data) to<R>(a.h.data, h, t * a.h.step);
        if (a.membranes.data) to<R>(a.membranes.data, v, t * a.membranes.step);
    }

    SNN_INLINE void forward() const {
        Reals v, r;
        start(v, r);
        if constexpr (S::unrolled > 0) {
            Values x[U];  // all reads are on their way before the first is needed
#pragma unroll
            for (int t = 0; t < U; ++t) x[t] = raw(t);
#pragma unroll
            for (int t = 0; t < U; ++t) step(x[t], t, v, r);
        } else {
            Values x = raw(0);
            for (i64 t = 0; t < a.steps; ++t) {
                Values next = t + 1 < a.steps ? raw(t + 1) : x;
                step(x, t, v, r);
                x = next;
            }
        }
        to<R>(a.membrane, v);
    }

    // Step t back. `earlier` is h of step t - 1, `first` what the first charge read.
    SNN_INLINE void back(i64 t, bool last, const Reals& h, const Reals& earlier, const Reals& first,
                         const Values& x, Gradients<R>* g) const {
        Values s = {}, out;
        Reals m = {};
        if (a.grad_spikes.data) s = from<IO>(a.grad_spikes.data, t * a.grad_spikes.step);
        if (a.grad_membranes.data) m = from<R>(a.grad_membranes.data, t * a.grad_membranes.step);
        if (last && a.grad_membrane) {
            Reals final = from<R>(a.grad_membrane);
            SNN_EACH m.lane[k] = final.lane[k] + m.lane[k];
        }
        SNN_EACH {
            R before = R(0);
            if constexpr (S::learn) {
                R e = earlier.lane[k];
                before = t == 0 ? first.lane[k] : charged_from<S>(e, spike<S>(e, p[k]), p[k]);
            }
            R xi = S::learn && S::leaks_input ? input(x, t, k) : R(0);
            backward_step<S>(h.lane[k], xi, before, widen(s.lane[k]), m.lane[k], g[k], p[k]);
            R grad_x = g[k].h * input_share<S>(p[k]);
            if constexpr (S::affine) grad_x = a.unscaled ? grad_x : grad_x * scale(t, k);
            narrow(grad_x, out.lane[k]);
        }
        to<IO>(a.grad_x.data, out, t * a.grad_x.step);
    }

    SNN_INLINE void backward() const {
        Gradients<R> g[LANES] = {};
        Reals v = {}, r = {};
        if (S::unrolled > 0 || S::learn || (S::delayed && a.resume)) start(v, r);
        Reals first = v, due = r;
        if constexpr (S::learn && S::delayed && S::reset == HARD)
            SNN_EACH first.lane[k] = reset<S>(v.lane[k], r.lane[k], p[k]);
        if constexpr (S::unrolled > 0) {
            Values x[U];
            Reals h[U];
#pragma unroll
            for (int t = 0; t < U; ++t) x[t] = raw(t);
#pragma unroll
            for (int t = 0; t < U; ++t)
                SNN_EACH forward_step<S>(input(x[t], t, k), v.lane[k], r.lane[k], h[t].lane[k], p[k]);
#pragma unroll
            for (int t = U - 1; t >= 0; --t) back(t, t == U - 1, h[t], h[t > 0 ? t - 1 : 0], first, x[t], g);
        } else {
            i64 last = a.steps - 1;
            Reals h = from<R>(a.h.data, last * a.h.step), earlier = h;
            for (i64 t = last; t >= 0; --t) {
                if (t > 0) earlier = from<R>(a.h.data, (t - 1) * a.h.step);
                Values x = {};
                if (S::learn && S::leaks_input) x = raw(t);
                back(t, t == last, h, earlier, first, x, g);
                h = earlier;
            }
        }
        Reals of_v, of_decay, of_threshold;
        SNN_EACH {
            backward_start<S>(due.lane[k], g[k], p[k]);
            of_v.lane[k] = g[k].v, of_decay.lane[k] = g[k].decay, of_threshold.lane[k] = g[k].threshold;
        }
        if (a.grad_v) to<R>(a.grad_v, of_v);
        if (S::learn && a.grad_decay) to<R>(a.grad_decay, of_decay);
        if (S::learn && a.grad_threshold) to<R>(a.grad_threshold, of_threshold);
    }
};

}  // namespace snn

// What a thread does; blocks, threads and their indices are the device's, or the emulation's.
#define SNN_CELLS(direction, lanes, a, S)                                                  \
    for (snn::i64 n = (snn::i64(blockIdx.x) * blockDim.x + threadIdx.x) * lanes; n < a.neurons; \
         n += snn::i64(gridDim.x) * blockDim.x * lanes)                                      \
        snn::Cell<S, lanes>(a, n).direction();
