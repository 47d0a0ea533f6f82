// Short runs: contiguous (N, C, S) with a small S is rows of C * S values, a channel S neighbouring columns of them.
// A few channels at a time, so that all their rows are still in cache for the second pass.
#pragma once
#include "rows.h"

namespace bn {
namespace BN_NS {

constexpr int64_t kColumns = 1024;

// By the shape alone, so that every number of threads takes the same way.
template <class T> BN_INLINE bool short_runs(const Call& q) {
    const Shape& s = q.shape;
    return !s.last && !q.weights && s.s * static_cast<int64_t>(sizeof(T)) < 512 && s.c * s.s >= 512 && s.n / s.groups >= 8;
}

// Some channels of one group, their columns, and what each column is normalised with.
template <class A> struct Strip {
    int64_t group, first, channels;
    Cols cols;
    Range rows;
    A mean[kColumns], scale[kColumns], shift[kColumns], centre[kColumns], pull_scale[kColumns], u[kColumns], v[kColumns];
    A s1[kColumns], s2[kColumns];

    BN_INLINE Vectors<A> vectors(Strip& p) { return {p.mean, p.scale, p.shift, p.centre, p.pull_scale, p.u, p.v}; }
};

template <class A> BN_INLINE void spread(A* to, int64_t channel, int64_t s, A value) {
    for (int64_t j = 0; j < s; ++j) to[channel * s + j] = value;
}

template <class A> BN_INLINE void clear_sums(Strip<A>& p) {
    for (int64_t i = 0; i < p.cols.count; ++i) p.s1[i] = p.s2[i] = 0;
}

// body(strip) for all; several to a thread only where there are enough.
template <class A, class Body> BN_INLINE void each_strip(const Call& q, Body&& body) {
    const Shape& s = q.shape;
    int64_t columns = s.c * s.s / 16;
    columns = columns < 256 ? 256 : columns > kColumns ? kColumns : columns;
    const int64_t channels = columns / s.s < 1 ? 1 : columns / s.s, strips = (s.c + channels - 1) / channels;
    parallel(q.threads, s.groups * strips, [&](int64_t unit) {
        Strip<A> p;
        p.group = unit / strips;
        p.first = unit % strips * channels;
        p.channels = least(channels, s.c - p.first);
        p.cols = {p.first * s.s, p.channels * s.s, s.c * s.s};
        p.rows = group_range(s, p.group);
        body(p);
    });
}

template <class T, class A> static void reduce_strip(const Call& q, Strip<A>& p, Moments* m) {
    const int64_t s = q.shape.s, stride = p.cols.stride;
    const T* x = static_cast<const T*>(q.x) + p.cols.first;
    A* shift = p.mean;
    const int64_t few = least(4, p.rows.last - p.rows.first);
    for (int64_t i = 0; i < p.channels; ++i) {
        double first = 0;
        for (int64_t r = p.rows.first; r < p.rows.first + few; ++r) first += sum(x + r * stride + i * s, s);
        spread(shift, i, s, static_cast<A>(first / static_cast<double>(few * s)));
        m[i] = Moments{0, 0, 0, 0};
    }
    clear_sums(p);
    int64_t target = kFirstRows;
    for (int64_t r = p.rows.first; r < p.rows.last;) {
        const int64_t end = least(r + target, p.rows.last);
        const double n = static_cast<double>((end - r) * s);
        for (; r + 8 <= end; r += 8) add_rows<T, A, 8>(x + r * stride, p.cols.count, stride, shift, p.s1, p.s2);
        for (; r < end; ++r) add_rows<T, A, 1>(x + r * stride, p.cols.count, stride, shift, p.s1, p.s2);
        for (int64_t i = 0; i < p.channels; ++i) {
            const double s1 = sum(p.s1 + i * s, s), d = s1 / n, m2 = sum(p.s2 + i * s, s) - s1 * d;
            merge(m[i], Moments{n, n, static_cast<double>(shift[i * s]) + d, m2 < 0 ? 0 : m2});
            spread(shift, i, s, static_cast<A>(m[i].mean));
        }
        clear_sums(p);
        if (target < kLastRows) target *= 4;
    }
    if (sizeof(A) != 4) return;
    const Blocks b = blocks_of(q.shape);
    for (int64_t i = 0; i < p.channels; ++i) {
        if (finite(m[i].m2)) continue;
        m[i] = Moments{0, 0, 0, 0};
        for (int64_t k = 0; k < b.count; ++k) merge(m[i], reduce_wide<T, A, false>(q, b, p.group, p.first + i, k));
    }
}

template <class A> BN_INLINE void spread_affine(Strip<A>& p, int64_t i, int64_t s, const Affine<A>& f) {
    spread(p.mean, i, s, f.mean);
    spread(p.scale, i, s, f.scale);
    spread(p.shift, i, s, f.shift);
}

template <class T, class A> static void reduce_short(const Call& q) {
    const int64_t all = q.shape.groups * q.shape.c;
    each_strip<A>(q, [&](Strip<A>& p) {
        Moments m[kColumns];
        reduce_strip<T, A>(q, p, m);
        for (int64_t i = 0; i < p.channels; ++i) {
            const int64_t at = p.group * q.shape.c + p.first + i;
            q.saved[kCount * all + at] = m[i].n;
            q.saved[kCountSquared * all + at] = m[i].n2;
            q.saved[kBatchMean * all + at] = m[i].mean;
            q.saved[kM2 * all + at] = m[i].m2;
        }
    });
}

template <class T, class A, int ACT, bool RES> static void forward_short(const Call& q) {
    each_strip<A>(q, [&](Strip<A>& p) {
        Moments m[kColumns];
        const bool stored = q.plan.coupling == kStored;
        if (!stored) reduce_strip<T, A>(q, p, m);
        for (int64_t i = 0; i < p.channels; ++i) {
            const int64_t ch = p.first + i, at = p.group * q.shape.c + ch;
            const Moments found = stored ? Moments{0, 0, 0, 0} : m[i];
            plan_channel(q, at, ch, found.n, found.n2, found.mean, found.m2);
            spread_affine(p, i, q.shape.s, saved_affine<A>(q, at));
        }
        if (q.out) apply_rows<T, A, false, ACT, RES>(q, Strip<A>::vectors(p), p.cols, p.rows);
    });
}

template <class T, class A, int ACT, int SRC, bool RES, bool OUT> static void backward_strip(const Call& q, Strip<A>& p) {
    typedef Channel<A, SRC> Ch;
    const int64_t s = q.shape.s, base = p.group * q.shape.c + p.first;
    double sg[kColumns], sx[kColumns];
    for (int64_t i = 0; i < p.channels; ++i) {
        const int64_t at = base + i, ch = p.first + i;
        spread_affine(p, i, s, Ch::seen(q, at, ch));
        q.sum_g[at] = q.sum_gx[at] = 0;
        if (OUT) spread(p.pull_scale, i, s, Ch::pulled(q, at, ch).scale);
        sg[i] = sx[i] = 0;
    }
    const Vectors<A> f = Strip<A>::vectors(p);
    if (q.wants_sums) {
        clear_sums(p);
        for (int64_t r = p.rows.first; r < p.rows.last; r += kLastRows) {
            const int64_t end = least(r + kLastRows, p.rows.last);
            sums_of_rows<T, A, ACT, SRC, OUT, RES>(q, f, p.cols, r, end, p.s1, p.s2);
            for (int64_t i = 0; i < p.channels; ++i) {
                sg[i] += sum(p.s1 + i * s, s);
                sx[i] += sum(p.s2 + i * s, s);
            }
            clear_sums(p);
        }
        for (int64_t i = 0; i < p.channels; ++i) Ch::settle(q, base + i, p.first + i, sg[i], sx[i]);
    }
    if (OUT || !q.wants_dx) return;
    for (int64_t i = 0; i < p.channels; ++i) {
        const Pull<A> t = Ch::pulled(q, base + i, p.first + i);
        spread(p.centre, i, s, t.centre);
        spread(p.pull_scale, i, s, t.scale);
        spread(p.u, i, s, t.u);
        spread(p.v, i, s, t.v);
    }
    pull_rows<T, A, false, ACT, SRC, RES>(q, f, p.cols, p.rows);
}

template <class T, class A, int ACT, int SRC, bool RES> static void backward_short(const Call& q) {
    const bool at_once = without_share(q) && q.wants_sums && q.wants_dx;
    each_strip<A>(q, [&](Strip<A>& p) {
        if (at_once) backward_strip<T, A, ACT, SRC, RES, true>(q, p);
        else backward_strip<T, A, ACT, SRC, RES, false>(q, p);
    });
}

}  // namespace BN_NS
}  // namespace bn
