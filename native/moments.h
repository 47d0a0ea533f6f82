// Counts, means and squared deviations of a block, shifted by a running mean so that nothing cancels.
#pragma once
#include "vec.h"

namespace bn {
namespace BN_NS {

struct Moments { double n, mean, m2; };

// Chan, Golub and LeVeque (1979).
BN_INLINE void merge(Moments& a, const Moments& b) {
    if (b.n == 0) return;
    if (a.n == 0) {
        a = b;
        return;
    }
    const double n = a.n + b.n, share = b.n / n, delta = b.mean - a.mean;
    if (finite(delta)) {
        a.mean += delta * share;
        a.m2 += b.m2 + delta * delta * a.n * share;
    } else {
        // The mean with an infinity is infinite, and of both signs NaN; the squares have it already.
        a.mean += b.mean;
        a.m2 += b.m2;
    }
    a.n = n;
}

// Tiles grow from 64 to 1024 values: the first ones settle the shift, the size bounds float rounding.
constexpr int64_t kFirstTile = 64, kLastTile = 1024;

// Sums over one tile of a channel, about the shift k.
template <class A, bool W> struct Tile {
    typedef typename VecOf<A>::type V;
    V s1[4], s2[4], sw[W ? 4 : 1];
    V k;
    A k0;
    int64_t filled, target;
    Moments total;

    BN_INLINE void clear(Tile& t) {
        for (int j = 0; j < 4; ++j) t.s1[j] = t.s2[j] = V{};
        if (W)
            for (int j = 0; j < 4; ++j) t.sw[j] = V{};
        t.filled = 0;
    }

    BN_INLINE void start(Tile& t, A shift) {
        t.total = Moments{0, 0, 0};
        t.k0 = shift;
        t.k = splat(shift);
        t.target = kFirstTile;
        clear(t);
    }

    BN_INLINE void flush(Tile& t) {
        if (!t.filled) return;
        const double s1 = sum((t.s1[0] + t.s1[1]) + (t.s1[2] + t.s1[3]));
        const double s2 = sum((t.s2[0] + t.s2[1]) + (t.s2[2] + t.s2[3]));
        double n = static_cast<double>(t.filled);
        if (W) n = sum((t.sw[0] + t.sw[1]) + (t.sw[2] + t.sw[3]));
        if (n > 0) {
            const double d = s1 / n;
            const double m2 = s2 - s1 * d;
            merge(t.total, Moments{n, static_cast<double>(t.k0) + d, m2 < 0 ? 0 : m2});
            // A mean that is not finite would poison later tiles no further than it already does.
            t.k0 = static_cast<A>(t.total.mean);
            t.k = splat(t.k0);
        }
        if (t.target < kLastTile) t.target *= 4;
        clear(t);
    }
};

template <class A, bool W, class V> BN_INLINE void add(Tile<A, W>& t, int j, V x, V w) {
    if (W) {
        x = w != 0 ? x : t.k;
        const V d = x - t.k, wd = w * d;
        t.s1[j] += wd;
        t.s2[j] += wd * d;
        t.sw[j] += w;
    } else {
        const V d = x - t.k;
        t.s1[j] += d;
        t.s2[j] += d * d;
    }
}

// One run of values that lie side by side; what lies so many values ahead is asked for on the way.
template <class T, class A, bool W>
BN_INLINE void add_span(Tile<A, W>& t, const T* p, const A* w, int64_t n, int64_t ahead) {
    typedef typename VecOf<A>::type V;
    constexpr int L = width<A>();
    int64_t i = 0;
    auto weight = [&](int64_t at) -> V { return W ? load(w + at) : V{}; };
    for (; i + 4 * L <= n; i += 4 * L) {
        ask<4 * L>(p + i + ahead);
        add<A, W, V>(t, 0, load(p + i), weight(i));
        add<A, W, V>(t, 1, load(p + i + L), weight(i + L));
        add<A, W, V>(t, 2, load(p + i + 2 * L), weight(i + 2 * L));
        add<A, W, V>(t, 3, load(p + i + 3 * L), weight(i + 3 * L));
    }
    if (i + L <= n) {
        add<A, W, V>(t, 0, load(p + i), weight(i));
        i += L;
    }
    if (i + L <= n) {
        add<A, W, V>(t, 1, load(p + i), weight(i));
        i += L;
    }
    if (i + L <= n) {
        add<A, W, V>(t, 2, load(p + i), weight(i));
        i += L;
    }
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        add<A, W, V>(t, 3, load(p + i, rest, t.k), W ? load(w + i, rest, V{}) : V{});
    }
    t.filled += n;
}

template <class T, class A, bool W>
BN_INLINE void add_run(Tile<A, W>& t, const T* p, const A* w, int64_t n, int64_t ahead) {
    while (n > 0) {
        const int64_t now = least(n, t.target - t.filled);
        add_span<T, A, W>(t, p, w, now, ahead);
        if (t.filled >= t.target) Tile<A, W>::flush(t);
        p += now;
        if (W) w += now;
        n -= now;
    }
}

}  // namespace BN_NS
}  // namespace bn
