// Contiguous (N, C, S): a channel is a run of S values in every sample.
#pragma once
#include "activation.h"
#include "moments.h"
#include "parallel.h"
#include "plan.h"

namespace bn {
namespace BN_NS {

// Calls body(offset of the first value, number of values, offset in the weights) for each run of a block.
template <class Body>
BN_INLINE void runs_of(const Shape& q, const Blocks& b, int64_t group, int64_t channel, int64_t block, Body&& body) {
    const Range range = group_range(q, group);
    if (b.splits_row) {
        const int64_t n = range.first + block / b.per_row, s = block % b.per_row * b.size;
        if (n >= range.last || s >= q.s) return;
        body((n * q.c + channel) * q.s + s, least(b.size, q.s - s), n * q.s + s);
        return;
    }
    const int64_t first = range.first + block * b.size, last = least(first + b.size, range.last);
    for (int64_t n = first; n < last; ++n) body((n * q.c + channel) * q.s, q.s, n * q.s);
}

template <class T, class A, bool W>
BN_LOOP Moments reduce_wide(const Call& q, const Blocks& b, int64_t group, int64_t channel, int64_t block) {
    // Squares overflowed float: once more in double. NaN and infinity come here too and stay what they are, but that
    // the squares of infinities without NaN are infinite, for who asks for E[x^2].
    const T* x = static_cast<const T*>(q.x);
    const A* w = static_cast<const A*>(q.weights);
    double n = 0, s = 0, m2 = 0;
    for (int pass = 0; pass < 2; ++pass) {
        const double mean = pass && finite(s) ? s / (n > 0 ? n : 1) : 0;
        runs_of(q.shape, b, group, channel, block, [&](int64_t at, int64_t run, int64_t wat) {
            for (int64_t i = 0; i < run; ++i) {
                const double weight = W ? static_cast<double>(w[wat + i]) : 1;
                if (weight == 0) continue;
                const double v = static_cast<double>(scalar(x + at + i));
                if (pass) m2 += weight * (v - mean) * (v - mean);
                else {
                    n += weight;
                    s += weight * v;
                }
            }
        });
    }
    return {n, s / (n > 0 ? n : 1), m2};
}

template <class T, class A, bool W>
BN_LOOP Moments reduce_block(const Call& q, const Blocks& b, int64_t group, int64_t channel, int64_t block) {
    const T* x = static_cast<const T*>(q.x);
    const A* w = static_cast<const A*>(q.weights);
    Tile<A, W> t;
    bool begun = false;
    if (W) {
        // The first shift is the value that counts most: a far one that hardly counts would leave float sums few
        // digits.
        A most = 0, shift = 0;
        int64_t left = 16;
        runs_of(q.shape, b, group, channel, block, [&](int64_t at, int64_t run, int64_t wat) {
            for (int64_t i = 0; left > 0 && i < run; ++i) {
                if (w[wat + i] == 0) continue;
                --left;
                if (w[wat + i] > most) most = w[wat + i], shift = scalar(x + at + i);
            }
        });
        if (left == 16) return {0, 0, 0};
        Tile<A, W>::start(t, shift);
        begun = true;
    }
    runs_of(q.shape, b, group, channel, block, [&](int64_t at, int64_t run, int64_t wat) {
        if (!begun) {
            const int64_t few = least(run, 16);
            Tile<A, W>::start(t, static_cast<A>(sum(x + at, few) / static_cast<double>(few)));
            begun = true;
        }
        add_run<T, A, W>(t, x + at, W ? w + wat : nullptr, run, q.shape.c * q.shape.s);
    });
    if (!begun) return {0, 0, 0};
    Tile<A, W>::flush(t);
    if (!finite(t.total.m2)) return reduce_wide<T, A, W>(q, b, group, channel, block);
    return t.total;
}

template <class T, class A, bool W, int ACT, bool RES>
BN_INLINE void apply_run(const Call& q, const Affine<A>& f, int64_t at, int64_t n, int64_t wat) {
    typedef typename VecOf<A>::type V;
    constexpr int L = width<A>();
    const T* x = static_cast<const T*>(q.x) + at;
    const T* r = RES ? static_cast<const T*>(q.residual) + at : nullptr;
    const A* w = W ? static_cast<const A*>(q.weights) + wat : nullptr;
    T* y = static_cast<T*>(q.out) + at;
    const V mean = splat(f.mean), scale = splat(f.scale), shift = splat(f.shift);
    const A slope = static_cast<A>(q.slope);
    auto one = [&](int64_t i, int count, bool past) __attribute__((always_inline)) {
        V v = (take(x + i, count, V{}) - mean) * scale + shift;
        if (RES) v += take(r + i, count, V{});
        v = activated<ACT>(v, slope, q.activation);
        if (W) v = take(w + i, count, V{}) != 0 ? v : V{};
        put(y + i, v, count, past);
    };
    int64_t i = 0;
    if (q.streams) {
        i = least(until_aligned<T, L>(y), n);
        if (i) one(0, static_cast<int>(i), false);
        for (; i + L <= n; i += L) one(i, L, true);
    }
    for (; i + L <= n; i += L) one(i, L, false);
    if (i < n) one(i, static_cast<int>(n - i), false);
}

template <class T, class A, bool W, int ACT, bool RES> BN_LOOP void apply_block(const Call& q, const Blocks& b,
                                                                                int64_t group, int64_t channel,
                                                                                int64_t block, const Affine<A>& f) {
    runs_of(q.shape, b, group, channel, block,
            [&](int64_t at, int64_t n, int64_t wat) { apply_run<T, A, W, ACT, RES>(q, f, at, n, wat); });
}

// What the backward's loops read: the gradient behind the activation, and the data (or, inverted, z found again from
// y). The addresses are held here, since the stores between two reads might, for all the compiler knows, change the
// call's.
template <class T, class A, bool W, int ACT, int SRC> struct Gradient {
    typedef typename VecOf<A>::type V;
    const T *g_at, *x_at, *y_at;
    const A* w_at;
    A slope, inverse;
    int activation;

    explicit Gradient(const Call& q, int64_t at = 0, int64_t wat = 0)
        : g_at(static_cast<const T*>(q.g) + at), x_at(SRC == kInvert ? nullptr : static_cast<const T*>(q.x) + at),
          y_at(SRC == kRecompute ? nullptr : static_cast<const T*>(q.y_in) + at),
          w_at(W ? static_cast<const A*>(q.weights) + wat : nullptr), slope(static_cast<A>(q.slope)),
          inverse(slope != 0 ? 1 / slope : 0), activation(q.activation) {}

    // Lanes beyond n hold the mean, and no gradient.
    __attribute__((always_inline)) void read(int64_t at, int n, V mean, V scale, V shift, V& g, V& x, V& w) const {
        g = take(g_at + at, n, V{});
        if (SRC == kInvert) {
            const V y = take(y_at + at, n, V{});
            g = gated<ACT, T>(g, y, slope, activation);
            x = y <= 0 ? y * inverse : y;
            return;
        }
        x = take(x_at + at, n, mean);
        if (W) {
            w = take(w_at + at, n, V{});
            x = w != 0 ? x : mean;
            g = w != 0 ? g : V{};
        }
        if (ACT != kNone) {
            const V y = SRC == kOutput ? take(y_at + at, n, V{}) : (x - mean) * scale + shift;
            g = gated<ACT, T>(g, y, slope, activation);
        }
    }
};

// Sums of g and of g * (x - high part of the mean), carried to double every few thousand values.
template <class A> struct Sums {
    typedef typename VecOf<A>::type V;
    V s[4], sx[4];
    int64_t filled;
    double sum_g, sum_gx;

    BN_INLINE void clear(Sums& t) {
        for (int j = 0; j < 4; ++j) t.s[j] = t.sx[j] = V{};
        t.filled = 0;
    }
    BN_INLINE void flush(Sums& t) {
        t.sum_g += sum((t.s[0] + t.s[1]) + (t.s[2] + t.s[3]));
        t.sum_gx += sum((t.sx[0] + t.sx[1]) + (t.sx[2] + t.sx[3]));
        clear(t);
    }
};

// With OUT the gradient is stored on the way: where the batch has no share in the statistics it is g times a scale.
template <class T, class A, bool W, int ACT, int SRC, bool OUT, bool RES>
BN_INLINE void sums_run(const Call& q, const Affine<A>& k, A factor, int64_t from, int64_t n, int64_t wat, Sums<A>& t) {
    typedef typename VecOf<A>::type V;
    constexpr int L = width<A>();
    const Gradient<T, A, W, ACT, SRC> gradient(q, from, wat);
    const V mean = splat(k.mean), scale = splat(k.scale), shift = splat(k.shift), out = splat(factor);
    const int64_t ahead = q.shape.c * q.shape.s;
    T* dx = OUT ? static_cast<T*>(q.out) + from : nullptr;
    T* dr = OUT && RES ? static_cast<T*>(q.out_residual) + from : nullptr;
    auto one = [&](int64_t i, int count, int j) __attribute__((always_inline)) {
        V g, x, w;
        gradient.read(i, count, mean, scale, shift, g, x, w);
        t.s[j] += g;
        t.sx[j] += g * (x - mean);
        if (OUT) put(dx + i, W ? (w != 0 ? out * g : V{}) : out * g, count);
        if (OUT && RES) put(dr + i, g, count);
    };
    for (int64_t begin = 0; begin < n;) {
        const int64_t end = least(begin + kLastTile - t.filled, n);
        t.filled += end - begin;
        int64_t i = begin;
        for (; i + 4 * L <= end; i += 4 * L) {
            // A channel's next run is far away, beyond the hardware's prefetcher.
            ask<4 * L>(gradient.g_at + i + ahead);
            if (SRC != kInvert) ask<4 * L>(gradient.x_at + i + ahead);
            if (SRC != kRecompute) ask<4 * L>(gradient.y_at + i + ahead);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) one(i + j * L, L, j);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            if (i >= end) break;
            one(i, static_cast<int>(least(L, end - i)), j);
            i += L;
        }
        begin = end;
        if (t.filled >= kLastTile) Sums<A>::flush(t);
    }
}

template <class T, class A, bool W, int ACT, int SRC, bool RES>
BN_INLINE void pull_run(const Call& q, const Affine<A>& k, const Pull<A>& f, int64_t from, int64_t n, int64_t wat) {
    typedef typename VecOf<A>::type V;
    constexpr int L = width<A>();
    const Gradient<T, A, W, ACT, SRC> gradient(q, from, wat);
    T* dx = static_cast<T*>(q.out) + from;
    T* dr = RES ? static_cast<T*>(q.out_residual) + from : nullptr;
    const V mean = splat(k.mean), seen = splat(k.scale), shift = splat(k.shift);
    const V centre = splat(f.centre), scale = splat(f.scale), u = splat(f.u), v = splat(f.v);
    auto one = [&](int64_t i, int count, bool past) __attribute__((always_inline)) {
        V g, x, w;
        gradient.read(i, count, mean, seen, shift, g, x, w);
        if (RES) put(dr + i, g, count, past);
        V through = unless_zero(v, (x - centre) * v + u, u);
        if (W) through = w * through;
        const V out = scale * g - through;
        put(dx + i, W ? (w != 0 ? out : V{}) : out, count, past);
    };
    int64_t i = 0;
    if (q.streams && (!RES || until_aligned<T, L>(dr) == until_aligned<T, L>(dx))) {
        i = least(until_aligned<T, L>(dx), n);
        if (i) one(0, static_cast<int>(i), false);
        for (; i + L <= n; i += L) one(i, L, true);
    }
    for (; i + L <= n; i += L) one(i, L, false);
    if (i < n) one(i, static_cast<int>(n - i), false);
}

// Both blocks' loops take what the activation saw, and what the gradient is scaled with.
template <class T, class A, bool W, int ACT, int SRC, bool OUT, bool RES>
BN_LOOP void sums_block(const Call& q, const Blocks& b, int64_t group, int64_t channel, int64_t block,
                        const Affine<A>& seen, A scale, double& sum_g, double& sum_gx) {
    Sums<A> t;
    t.sum_g = t.sum_gx = 0;
    Sums<A>::clear(t);
    runs_of(q.shape, b, group, channel, block, [&](int64_t at, int64_t n, int64_t wat) {
        sums_run<T, A, W, ACT, SRC, OUT, RES>(q, seen, scale, at, n, wat, t);
    });
    Sums<A>::flush(t);
    sum_g += t.sum_g;
    sum_gx += t.sum_gx;
}

template <class T, class A, bool W, int ACT, int SRC, bool RES>
BN_LOOP void pull_block(const Call& q, const Blocks& b, int64_t group, int64_t channel, int64_t block,
                        const Affine<A>& seen, const Pull<A>& f) {
    runs_of(q.shape, b, group, channel, block,
            [&](int64_t at, int64_t n, int64_t wat) { pull_run<T, A, W, ACT, SRC, RES>(q, seen, f, at, n, wat); });
}

}  // namespace BN_NS
}  // namespace bn
