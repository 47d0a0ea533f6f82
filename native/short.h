// Short runs: contiguous (N, C, S) with a small S is rows of C * S values, a channel S neighbouring columns of them.
// A few channels at a time, so that all their rows are still in cache for the second pass.
#pragma once
#include "rows.h"

namespace bn {
namespace BN_NS {

constexpr int64_t kColumns = 1024;

// By the shape alone, so that every number of threads takes the same way.
BN_INLINE bool short_runs(const Call& q, int64_t bytes_of_value) {
    const Shape& s = q.shape;
    return !s.last && !q.weights && s.s * bytes_of_value < 512 && s.c * s.s >= 512 && s.n / s.groups >= 8;
}

// Some channels of one group, their columns, and what each column is normalised with.
template <class A> struct Strip {
    int64_t group, first, channels;
    Cols cols;
    Range rows;
    A mean[kColumns], scale[kColumns], shift[kColumns], centre[kColumns], pull_scale[kColumns], u[kColumns],
        v[kColumns];
    A s1[kColumns], s2[kColumns];

    BN_INLINE Vectors<A> vectors(Strip& p) { return {p.mean, p.scale, p.shift, p.centre, p.pull_scale, p.u, p.v}; }
};

template <class A> BN_INLINE void spread(A* to, int64_t channel, int64_t s, A value) {
    for (int64_t j = 0; j < s; ++j) to[channel * s + j] = value;
}

template <class A> BN_INLINE void clear_sums(Strip<A>& p) {
    for (int64_t i = 0; i < p.cols.count; ++i) p.s1[i] = p.s2[i] = 0;
}

template <class T, class A> BN_LOOP void reduce_strip(const Call& q, Strip<A>& p, Moments* m) {
    const int64_t s = q.shape.s, stride = p.cols.stride;
    const T* x = static_cast<const T*>(q.x) + p.cols.first;
    A* shift = p.mean;
    const int64_t few = least(4, p.rows.last - p.rows.first);
    for (int64_t i = 0; i < p.channels; ++i) {
        double first = 0;
        for (int64_t r = p.rows.first; r < p.rows.first + few; ++r) first += sum(x + r * stride + i * s, s);
        spread(shift, i, s, static_cast<A>(first / static_cast<double>(few * s)));
        m[i] = Moments{0, 0, 0};
    }
    clear_sums(p);
    int64_t target = kFirstRows;
    for (int64_t r = p.rows.first; r < p.rows.last;) {
        const int64_t end = least(r + target, p.rows.last);
        const double n = static_cast<double>((end - r) * s);
        add_rows<T, A>(x, r, end, p.cols.count, stride, shift, p.s1, p.s2);
        r = end;
        for (int64_t i = 0; i < p.channels; ++i) {
            const double s1 = sum(p.s1 + i * s, s), d = s1 / n, m2 = sum(p.s2 + i * s, s) - s1 * d;
            merge(m[i], Moments{n, static_cast<double>(shift[i * s]) + d, m2 < 0 ? 0 : m2});
            spread(shift, i, s, static_cast<A>(m[i].mean));
        }
        clear_sums(p);
        if (target < kLastRows) target *= 4;
    }
    const Blocks b = blocks_of(q.shape);
    for (int64_t i = 0; i < p.channels; ++i) {
        if (finite(m[i].m2)) continue;
        m[i] = Moments{0, 0, 0};
        for (int64_t k = 0; k < b.count; ++k) merge(m[i], reduce_wide<T, A, false>(q, b, p.group, p.first + i, k));
    }
}

}  // namespace BN_NS
}  // namespace bn
