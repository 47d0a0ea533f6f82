// Channels innermost: (N, S, C) is rows of C values. Blocks of rows are summed side by side and merged in order.
#pragma once
#include "planes.h"

namespace bn {
namespace BN_NS {

// Rows of a group that a block holds.
BN_INLINE Range rows_of(const Shape& q, const Blocks& b, int64_t group, int64_t block) {
    const Range range = group_range(q, group);
    const int64_t first = range.first * q.s + block * b.size;
    const int64_t end = range.last * q.s;
    return {least(first, end), least(first + b.size, end)};
}

constexpr int64_t kFirstRows = 8, kLastRows = 32;

// The part of every row that a call works on: neighbouring columns of rows that lie `stride` values apart.
struct Cols { int64_t first, count, stride; };

BN_INLINE Cols whole_rows(const Shape& q) { return {0, q.c, q.c}; }

// Scratch of one block: count, mean and m2 of each channel, then the tile's shift and sums.
template <class A> struct BlockSums {
    double *n, *mean, *m2;
    A *k, *s1, *s2;
    BN_INLINE BlockSums at(double* scratch, int64_t index, int64_t c) {
        double* p = scratch + index * (5 * c + 4);
        A* a = reinterpret_cast<A*>(p + 4 + 2 * c);
        return {p, p + 4, p + 4 + c, a, a + c, a + 2 * c};
    }
};

template <class A> BN_LOOP void flush_rows(const BlockSums<A>& t, int64_t c, double n) {
    if (n > 0) {
        const double before = *t.n, total = before + n, share = n / total, each = 1 / n;
        for (int64_t i = 0; i < c; ++i) {
            const double s1 = static_cast<double>(t.s1[i]), d = s1 * each;
            double m2 = static_cast<double>(t.s2[i]) - s1 * d;
            m2 = m2 < 0 ? 0 : m2;
            const double mean = static_cast<double>(t.k[i]) + d, delta = before > 0 ? mean - t.mean[i] : 0;
            const double from = before > 0 ? t.mean[i] : mean;
            t.mean[i] = from + delta * share;
            t.m2[i] += m2 + delta * delta * before * share;
            t.k[i] = static_cast<A>(t.mean[i]);
        }
        *t.n = total;
    }
    for (int64_t i = 0; i < c; ++i) t.s1[i] = t.s2[i] = 0;
}

template <class T, class A, int R>
BN_INLINE void add_some_rows(const T* x, int64_t c, int64_t stride, const A* k, A* s1, A* s2) {
    typedef typename VecOf<A>::type V;
    each_part<A>(c, [&](int64_t i, int n) __attribute__((always_inline)) {
        const V shift = take(k + i, n, V{});
        V a = take(s1 + i, n, V{}), b = take(s2 + i, n, V{});
        for (int r = 0; r < R; ++r) {
            const V d = take(x + r * stride + i, n, V{}) - shift;
            a += d;
            b += d * d;
        }
        put(s1 + i, a, n);
        put(s2 + i, b, n);
    });
}

// Adds the rows from `first` to `end`, eight at a time.
template <class T, class A>
BN_LOOP void add_rows(const T* x, int64_t first, int64_t end, int64_t c, int64_t stride, const A* k, A* s1, A* s2) {
    for (; first + 8 <= end; first += 8) add_some_rows<T, A, 8>(x + first * stride, c, stride, k, s1, s2);
    for (; first < end; ++first) add_some_rows<T, A, 1>(x + first * stride, c, stride, k, s1, s2);
}

template <class T, class A> BN_LOOP void add_weighted_row(const T* x, A weight, int64_t c, const A* k, A* s1, A* s2) {
    typedef typename VecOf<A>::type V;
    const V w = splat(weight);
    each_part<A>(c, [&](int64_t i, int n) __attribute__((always_inline)) {
        const V d = take(x + i, n, V{}) - take(k + i, n, V{}), wd = w * d;
        put(s1 + i, take(s1 + i, n, V{}) + wd, n);
        put(s2 + i, take(s2 + i, n, V{}) + wd * d, n);
    });
}

template <class T, class A, bool W>
BN_LOOP void rows_wide(const Call& q, const BlockSums<A>& t, Range rows, int64_t channel) {
    const T* x = static_cast<const T*>(q.x);
    const A* w = static_cast<const A*>(q.weights);
    double n = 0, s = 0, m2 = 0;
    for (int pass = 0; pass < 2; ++pass) {
        const double mean = pass && finite(s) ? s / (n > 0 ? n : 1) : 0;
        for (int64_t r = rows.first; r < rows.last; ++r) {
            const double weight = W ? static_cast<double>(w[r]) : 1;
            if (weight == 0) continue;
            const double v = static_cast<double>(scalar(x + r * q.shape.c + channel));
            if (pass) m2 += weight * (v - mean) * (v - mean);
            else {
                n += weight;
                s += weight * v;
            }
        }
    }
    t.mean[channel] = s / (n > 0 ? n : 1);
    t.m2[channel] = m2;
}

template <class T, class A, bool W>
BN_LOOP void reduce_rows(const Call& q, const Blocks& b, int64_t group, int64_t block) {
    const int64_t c = q.shape.c;
    const BlockSums<A> t = BlockSums<A>::at(q.scratch, group * b.count + block, c);
    const T* x = static_cast<const T*>(q.x);
    const A* w = static_cast<const A*>(q.weights);
    const Range rows = rows_of(q.shape, b, group, block);
    *t.n = 0;
    for (int64_t i = 0; i < c; ++i) {
        t.mean[i] = t.m2[i] = 0;
        t.s1[i] = t.s2[i] = 0;
        t.k[i] = 0;
    }
    int64_t r = rows.first;
    if (W)
        while (r < rows.last && w[r] == 0) ++r;
    if (r >= rows.last) return;
    // The shift of the first tile: the mean of its first few rows, or the one that counts most.
    const int64_t few = W ? 1 : least(4, rows.last - r);
    int64_t shift = r;
    if (W)
        for (int64_t j = r; j < least(r + 16, rows.last); ++j)
            if (w[j] > w[shift]) shift = j;
    for (int64_t j = 0; j < few; ++j)
        for (int64_t i = 0; i < c; ++i) t.k[i] += static_cast<A>(scalar(x + (shift + j) * c + i)) / static_cast<A>(few);
    int64_t target = kFirstRows;
    while (r < rows.last) {
        const int64_t end = least(r + target, rows.last);
        double n = static_cast<double>(end - r);
        if (W) {
            n = 0;
            for (; r < end; ++r) {
                if (w[r] == 0) continue;
                n += static_cast<double>(w[r]);
                add_weighted_row<T, A>(x + r * c, w[r], c, t.k, t.s1, t.s2);
            }
        } else {
            add_rows<T, A>(x, r, end, c, c, t.k, t.s1, t.s2);
            r = end;
        }
        flush_rows<A>(t, c, n);
        if (target < kLastRows) target *= 4;
    }
    for (int64_t i = 0; i < c; ++i)
        if (!finite(t.m2[i])) rows_wide<T, A, W>(q, t, rows, i);
}

// Parameters of all channels of a group as arrays of the arithmetic type.
template <class A> struct Vectors { A *mean, *scale, *shift, *centre, *pull_scale, *u, *v; };

// Whether whole vectors of the output can be streamed: every row begins at a multiple of the vector's size.
template <class T, int L> BN_INLINE bool streamable(const Call& q, const T* out, const Cols& k) {
    return q.streams && until_aligned<T, L>(out + k.first) == 0 && k.stride % L == 0;
}

// A row of zeros: what a sample of no weight gets.
template <class T, class A> BN_LOOP void zero_row(T* row, int64_t c) {
    typedef typename VecOf<A>::type V;
    each_part<A>(c, [&](int64_t i, int n) __attribute__((always_inline)) { put(row + i, V{}, n); });
}

template <class T, class A> static void clear_row(const Call& q, int64_t row) {
    zero_row<T, A>(static_cast<T*>(q.out) + row * q.shape.c, q.shape.c);
}

template <class T, class A, int ACT, bool RES>
BN_LOOP void apply_rows(const Call& q, const Vectors<A>& f, const Cols& k, Range rows) {
    typedef typename VecOf<A>::type V;
    const int64_t c = k.count, stride = k.stride;
    const T* x = static_cast<const T*>(q.x) + k.first;
    const T* res = RES ? static_cast<const T*>(q.residual) + k.first : nullptr;
    T* y = static_cast<T*>(q.out) + k.first;
    const A slope = static_cast<A>(q.slope);
    const bool streams = streamable<T, width<A>()>(q, static_cast<const T*>(q.out), k);
    auto some = [&](int64_t r, int count, bool past) __attribute__((always_inline)) {
        each_part<A>(c, [&](int64_t i, int n) __attribute__((always_inline)) {
            const V mean = take(f.mean + i, n, V{}), scale = take(f.scale + i, n, V{}),
                    shift = take(f.shift + i, n, V{});
            for (int j = 0; j < count; ++j) {
                const int64_t at = (r + j) * stride + i;
                V v = (take(x + at, n, V{}) - mean) * scale + shift;
                if (RES) v += take(res + at, n, V{});
                put(y + at, activated<ACT>(v, slope, q.activation), n, past);
            }
        });
    };
    int64_t r = rows.first;
    if (streams)
        for (; r + 4 <= rows.last; r += 4) some(r, 4, true);
    for (; r + 4 <= rows.last; r += 4) some(r, 4, false);
    for (; r < rows.last; ++r) some(r, 1, false);
}

template <class T, class A>
BN_LOOP void apply_weighted_rows(const Call& q, const Vectors<A>& f, const Cols& k, Range rows) {
    const A* w = static_cast<const A*>(q.weights);
    for (int64_t r = rows.first; r < rows.last; ++r) {
        if (w[r] == 0) zero_row<T, A>(static_cast<T*>(q.out) + k.first + r * k.stride, k.count);
        else apply_rows<T, A, kNone, false>(q, f, k, {r, r + 1});
    }
}

// What a row's gradient is stored as, where the sums alone decide nothing of it (OUT): dx is g times a scale.
template <class T, class A, int ACT, int SRC, bool OUT, bool RES>
BN_LOOP void sums_of_rows(const Call& q, const Vectors<A>& vectors, const Cols& k, Range rows, A* s1, A* s2) {
    typedef typename VecOf<A>::type V;
    const Gradient<T, A, false, ACT, SRC> gradient(q);
    const Vectors<A> f = vectors;
    const int64_t columns = k.count, stride = k.stride, begin = k.first;
    T* dx = static_cast<T*>(q.out);
    T* dr = static_cast<T*>(q.out_residual);
    auto some = [&](int64_t r, int count) __attribute__((always_inline)) {
        each_part<A>(columns, [&](int64_t i, int n) __attribute__((always_inline)) {
            const V mean = take(f.mean + i, n, V{}), scale = take(f.scale + i, n, V{}),
                    shift = take(f.shift + i, n, V{});
            const V out = OUT ? take(f.pull_scale + i, n, V{}) : V{};
            V a = take(s1 + i, n, V{}), ax = take(s2 + i, n, V{});
            for (int j = 0; j < count; ++j) {
                const int64_t at = (r + j) * stride + begin + i;
                V g, x, w;
                gradient.read(at, n, mean, scale, shift, g, x, w);
                a += g;
                ax += g * (x - mean);
                if (OUT) put(dx + at, out * g, n);
                if (OUT && RES) put(dr + at, g, n);
            }
            put(s1 + i, a, n);
            put(s2 + i, ax, n);
        });
    };
    int64_t r = rows.first;
    for (; r + 8 <= rows.last; r += 8) some(r, 8);
    for (; r < rows.last; ++r) some(r, 1);
}

template <class T, class A, bool W, int ACT, int SRC, bool RES>
BN_LOOP void pull_rows(const Call& q, const Vectors<A>& vectors, const Cols& k, Range rows) {
    typedef typename VecOf<A>::type V;
    constexpr int L = width<A>();
    const Gradient<T, A, false, ACT, SRC> gradient(q);
    const Vectors<A> f = vectors;
    const int64_t c = k.count, stride = k.stride, begin = k.first;
    const A* w = static_cast<const A*>(q.weights);
    T* dx = static_cast<T*>(q.out);
    T* dr = static_cast<T*>(q.out_residual);
    const bool streams = streamable<T, L>(q, dx, k) && (!RES || streamable<T, L>(q, dr, k));
    auto some = [&](int64_t r, int count, A weight, bool past) __attribute__((always_inline)) {
        each_part<A>(c, [&](int64_t i, int n) __attribute__((always_inline)) {
            const V mean = take(f.mean + i, n, V{}), scale = take(f.scale + i, n, V{}),
                    shift = take(f.shift + i, n, V{});
            const V centre = take(f.centre + i, n, V{}), out = take(f.pull_scale + i, n, V{});
            const V u = take(f.u + i, n, V{}), v = take(f.v + i, n, V{});
            for (int j = 0; j < count; ++j) {
                const int64_t at = (r + j) * stride + begin + i;
                V g, x, none;
                gradient.read(at, n, mean, scale, shift, g, x, none);
                if (RES) put(dr + at, g, n, past);
                V through = unless_zero(v, (x - centre) * v + u, u);
                if (W) through = through * weight;
                put(dx + at, out * g - through, n, past);
            }
        });
    };
    int64_t r = rows.first;
    if (W) {
        for (; r < rows.last; ++r) {
            if (w[r] == 0) zero_row<T, A>(dx + r * stride + begin, c);
            else some(r, 1, w[r], false);
        }
        return;
    }
    if (streams)
        for (; r + 4 <= rows.last; r += 4) some(r, 4, 1, true);
    for (; r + 4 <= rows.last; r += 4) some(r, 4, 1, false);
    for (; r < rows.last; ++r) some(r, 1, 1, false);
}

}  // namespace BN_NS
}  // namespace bn
