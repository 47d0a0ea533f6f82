// The passes over whole tensors for one instruction set: who does which block, and what is merged in between.
// Included by passes_*.cpp, each of which names its own namespace in BN_NS.
#include "loops.h"

namespace bn {
namespace BN_NS {

// Planes: contiguous (N, C, S) ----------------------------------------------------------------------------------

// Neighbouring channels go to one thread, so that short runs still make pages of contiguous memory.
BN_INLINE int64_t channels_of_chunk(const Shape& q, int64_t bytes_of_value) {
    const int64_t bytes = q.s * bytes_of_value;
    const int64_t few = (4096 + bytes - 1) / bytes, share = q.c * q.groups / 8;
    const int64_t chunk = few < share ? few : share;
    return chunk < 1 ? 1 : chunk;
}

// body(group, channel) for every one; a thread takes several neighbouring channels.
template <class Body> BN_INLINE void each_channel(const Call& q, int64_t bytes, const Body& body) {
    const int64_t chunk = channels_of_chunk(q.shape, bytes), chunks = (q.shape.c + chunk - 1) / chunk;
    parallel(q.threads, q.shape.groups * chunks, [&](int64_t unit) {
        const int64_t group = unit / chunks, first = unit % chunks * chunk;
        for (int64_t c = first; c < least(first + chunk, q.shape.c); ++c) body(group, c);
    });
}

// Few channels and many threads: blocks, not channels, are what threads take.
BN_INLINE bool by_block(const Call& q, const Blocks& b) {
    return q.threads > 1 && b.count > 1 && q.shape.groups * q.shape.c < 2 * q.threads;
}

template <class Body> BN_INLINE void each_block(const Call& q, const Blocks& b, int64_t bytes, const Body& body) {
    if (!by_block(q, b)) {
        each_channel(q, bytes, [&](int64_t g, int64_t c) {
            for (int64_t k = 0; k < b.count; ++k) body(g, c, k);
        });
        return;
    }
    parallel(q.threads, q.shape.groups * q.shape.c * b.count,
             [&](int64_t unit) { body(unit / b.count / q.shape.c, unit / b.count % q.shape.c, unit % b.count); });
}

// Tells `done(at, channel, moments, squared count)` of one channel.
template <class Done>
BN_INLINE void counted(const Call& q, int64_t group, int64_t at, int64_t ch, Moments m, const Done& done) {
    if (q.counts) m.n = q.counts[group].n;
    done(at, ch, m, q.counts ? q.counts[group].n2 : m.n);
}

// The moments of every group and channel.
template <class A, class Done>
BN_INLINE void reduce_planes(const Call& q, const Blocks& b, const Loops<A>& l, const Done& done) {
    const int64_t c = q.shape.c;
    if (!by_block(q, b)) {
        each_channel(q, l.bytes, [&](int64_t g, int64_t ch) {
            Moments m{0, 0, 0};
            for (int64_t k = 0; k < b.count; ++k) merge(m, l.reduce(q, b, g, ch, k));
            counted(q, g, g * c + ch, ch, m, done);
        });
        return;
    }
    Moments* parts = reinterpret_cast<Moments*>(q.scratch);
    each_block(q, b, l.bytes,
               [&](int64_t g, int64_t ch, int64_t k) { parts[(g * c + ch) * b.count + k] = l.reduce(q, b, g, ch, k); });
    for (int64_t at = 0; at < q.shape.groups * c; ++at) {
        Moments m{0, 0, 0};
        for (int64_t k = 0; k < b.count; ++k) merge(m, parts[at * b.count + k]);
        counted(q, at / c, at, at % c, m, done);
    }
}

template <class A> static void forward_planes(const Call& q, const Loops<A>& l) {
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c;
    if (q.plan.stored || q.plan.reduced) {
        for (int64_t at = 0; at < q.shape.groups * c; ++at) plan_known(q, at, at % c);
        if (!q.out) return;
    } else {
        const bool apart = by_block(q, b);
        reduce_planes(q, b, l, [&](int64_t at, int64_t ch, const Moments& m, double n2) {
            plan_channel(q, at, ch, m.n, n2, m.mean, m.m2);
            if (apart) return;
            // While the channel is in cache, last block first.
            const Affine<A> f = saved_affine<A>(q, at);
            for (int64_t k = b.count; k-- > 0;) l.apply(q, b, at / c, ch, k, f);
        });
        if (!apart) return;
    }
    each_block(q, b, l.bytes,
               [&](int64_t g, int64_t ch, int64_t k) { l.apply(q, b, g, ch, k, saved_affine<A>(q, g * c + ch)); });
}

// The scale that the sums' loop stores the gradient with.
template <class A> BN_INLINE A scale_on_the_way(const Call& q, OnTheWay stored, int64_t at, int64_t ch) {
    return stored == kDx ? Channel<A>::pulled(q, at, ch).scale : 1;
}

// The second loop's call: behind the activation the gradient is where dx will be.
BN_INLINE Call of_pull(const Call& q, OnTheWay stored) {
    Call to = q;
    if (stored == kGated) to.g = q.out;
    return to;
}

template <class A> static void backward_planes(const Call& q, const Loops<A>& l, OnTheWay stored) {
    typedef Channel<A> Ch;
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c, all = q.shape.groups * c;
    auto block_sums = [&](int64_t g, int64_t ch, int64_t k, double& sg, double& sx) {
        l.sums(q, b, g, ch, k, Ch::seen(q, g * c + ch, ch), scale_on_the_way<A>(q, stored, g * c + ch, ch), sg, sx);
    };
    const Call second = of_pull(q, stored);
    auto pulled = [&](int64_t g, int64_t ch, int64_t k) {
        l.pull(second, b, g, ch, k, Ch::seen(q, g * c + ch, ch), Ch::pulled(q, g * c + ch, ch));
    };
    const bool pulls = q.wants_dx && stored != kDx;
    if (!q.plan.summed)
        for (int64_t at = 0; at < all; ++at) q.sum_g[at] = q.sum_gx[at] = 0;
    if (!q.wants_sums) {
        if (pulls) each_block(q, b, l.bytes, pulled);
        return;
    }
    if (!by_block(q, b)) {
        each_channel(q, l.bytes, [&](int64_t g, int64_t ch) {
            double sg = 0, sx = 0;
            for (int64_t k = 0; k < b.count; ++k) block_sums(g, ch, k, sg, sx);
            Ch::settle(q, g * c + ch, ch, sg, sx);
            if (pulls)
                for (int64_t k = b.count; k-- > 0;) pulled(g, ch, k);
        });
        return;
    }
    double* parts = q.scratch;
    each_block(q, b, l.bytes, [&](int64_t g, int64_t ch, int64_t k) {
        double* p = parts + 2 * ((g * c + ch) * b.count + k);
        p[0] = p[1] = 0;
        block_sums(g, ch, k, p[0], p[1]);
    });
    for (int64_t at = 0; at < all; ++at) {
        double sg = 0, sx = 0;
        for (int64_t k = 0; k < b.count; ++k) {
            sg += parts[2 * (at * b.count + k)];
            sx += parts[2 * (at * b.count + k) + 1];
        }
        Ch::settle(q, at, at % c, sg, sx);
    }
    if (pulls) each_block(q, b, l.bytes, pulled);
}

// Rows: channels innermost ----------------------------------------------------------------------------------

template <class A> BN_INLINE Vectors<A> vectors_of(const Call& q, const Blocks& b, int64_t group) {
    const int64_t c = q.shape.c, all = q.shape.groups * c;
    A* p = reinterpret_cast<A*>(q.scratch + q.shape.groups * b.count * (5 * c + 4)) + group * c;
    return {p, p + all, p + 2 * all, p + 3 * all, p + 4 * all, p + 5 * all, p + 6 * all};
}

template <class Body> BN_INLINE void each_row_block(const Call& q, const Blocks& b, bool backwards, const Body& body) {
    const int64_t units = q.shape.groups * b.count;
    parallel(q.threads, units, [&](int64_t unit) {
        // The rows read last are the ones still in cache.
        const int64_t at = backwards ? units - 1 - unit : unit;
        body(at / b.count, at % b.count);
    });
}

// body(at, group, channel), in parallel where there is much to merge.
template <class Body> BN_INLINE void each_merge(const Call& q, const Blocks& b, const Body& body) {
    const int64_t all = q.shape.groups * q.shape.c, chunk = 64, chunks = (all + chunk - 1) / chunk;
    parallel(all * b.count > 16384 ? q.threads : 1, chunks, [&](int64_t unit) {
        for (int64_t at = unit * chunk; at < least(unit * chunk + chunk, all); ++at)
            body(at, at / q.shape.c, at % q.shape.c);
    });
}

template <class A, class Done>
BN_INLINE void reduce_all_rows(const Call& q, const Blocks& b, const Loops<A>& l, const Done& done) {
    each_row_block(q, b, false, [&](int64_t g, int64_t k) { l.reduce_rows(q, b, g, k); });
    each_merge(q, b, [&](int64_t at, int64_t g, int64_t ch) {
        Moments m{0, 0, 0};
        for (int64_t k = 0; k < b.count; ++k) {
            const BlockSums<A> t = BlockSums<A>::at(q.scratch, g * b.count + k, q.shape.c);
            merge(m, Moments{*t.n, t.mean[ch], t.m2[ch]});
        }
        counted(q, g, at, ch, m, done);
    });
}

template <class A> BN_INLINE void set_affine(const Vectors<A>& f, int64_t ch, const Affine<A>& a) {
    f.mean[ch] = a.mean;
    f.scale[ch] = a.scale;
    f.shift[ch] = a.shift;
}

template <class A> BN_INLINE void set_pull(const Vectors<A>& to, int64_t ch, const Pull<A>& f) {
    to.centre[ch] = f.centre;
    to.pull_scale[ch] = f.scale;
    to.u[ch] = f.u;
    to.v[ch] = f.v;
}

template <class A> static void apply_all_rows(const Call& q, const Blocks& b, const Loops<A>& l) {
    each_row_block(q, b, true, [&](int64_t g, int64_t k) {
        l.apply_rows(q, vectors_of<A>(q, b, g), whole_rows(q.shape), rows_of(q.shape, b, g, k));
    });
}

template <class A> static void pull_all_rows(const Call& q, const Blocks& b, const Loops<A>& l) {
    each_row_block(q, b, true, [&](int64_t g, int64_t k) {
        l.pull_rows(q, vectors_of<A>(q, b, g), whole_rows(q.shape), rows_of(q.shape, b, g, k));
    });
}

template <class A> static void forward_rows(const Call& q, const Loops<A>& l) {
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c;
    auto planned = [&](int64_t at, int64_t ch) { set_affine(vectors_of<A>(q, b, at / c), ch, saved_affine<A>(q, at)); };
    if (q.plan.stored || q.plan.reduced) {
        for (int64_t at = 0; at < q.shape.groups * c; ++at) {
            plan_known(q, at, at % c);
            planned(at, at % c);
        }
        if (!q.out) return;
    } else {
        reduce_all_rows(q, b, l, [&](int64_t at, int64_t ch, const Moments& m, double n2) {
            plan_channel(q, at, ch, m.n, n2, m.mean, m.m2);
            planned(at, ch);
        });
    }
    apply_all_rows(q, b, l);
}

// The sums of one block of rows, in its scratch; rows without weight are left out.
template <class A> static void sums_of_block(const Call& q, const Blocks& b, const Loops<A>& l, int64_t group,
                                             int64_t block, OnTheWay stored) {
    const int64_t c = q.shape.c;
    const Cols k = whole_rows(q.shape);
    const Vectors<A> f = vectors_of<A>(q, b, group);
    const BlockSums<A> t = BlockSums<A>::at(q.scratch, group * b.count + block, c);
    const A* w = static_cast<const A*>(q.weights);
    const Range rows = rows_of(q.shape, b, group, block);
    for (int64_t i = 0; i < c; ++i) {
        t.mean[i] = t.m2[i] = 0;
        t.s1[i] = t.s2[i] = 0;
    }
    for (int64_t r = rows.first; r < rows.last;) {
        const int64_t end = least(r + kLastRows, rows.last);
        if (w) {
            for (int64_t one = r; one < end; ++one) {
                if (w[one] != 0) l.sums_rows(q, f, k, {one, one + 1}, t.s1, t.s2);
                else if (stored) l.clear_row(q, one);
            }
        } else {
            l.sums_rows(q, f, k, {r, end}, t.s1, t.s2);
        }
        r = end;
        for (int64_t i = 0; i < c; ++i) {
            t.mean[i] += static_cast<double>(t.s1[i]);
            t.m2[i] += static_cast<double>(t.s2[i]);
            t.s1[i] = t.s2[i] = 0;
        }
    }
}

template <class A> static void backward_rows(const Call& q, const Loops<A>& l, OnTheWay stored) {
    typedef Channel<A> Ch;
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c, all = q.shape.groups * c;
    for (int64_t at = 0; at < all; ++at) {
        set_affine(vectors_of<A>(q, b, at / c), at % c, Ch::seen(q, at, at % c));
        if (!q.plan.summed) q.sum_g[at] = q.sum_gx[at] = 0;
        if (stored) vectors_of<A>(q, b, at / c).pull_scale[at % c] = scale_on_the_way<A>(q, stored, at, at % c);
    }
    if (q.wants_sums) each_row_block(q, b, false, [&](int64_t g, int64_t k) { sums_of_block(q, b, l, g, k, stored); });
    each_merge(q, b, [&](int64_t at, int64_t g, int64_t ch) {
        double sg = 0, sx = 0;
        for (int64_t k = 0; q.wants_sums && k < b.count; ++k) {
            const BlockSums<A> t = BlockSums<A>::at(q.scratch, g * b.count + k, c);
            sg += t.mean[ch];
            sx += t.m2[ch];
        }
        Ch::settle(q, at, ch, sg, sx);
        set_pull(vectors_of<A>(q, b, g), ch, Ch::pulled(q, at, ch));
    });
    if (q.wants_dx && stored != kDx) pull_all_rows(of_pull(q, stored), b, l);
}

// Strips: contiguous with short runs, some channels at a time ---------------------------------------------------

// body(strip) for all; several to a thread only where there are enough.
template <class A, class Body> BN_INLINE void each_strip(const Call& q, const Body& body) {
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

template <class A> BN_INLINE void spread_affine(Strip<A>& p, int64_t i, int64_t s, const Affine<A>& f) {
    spread(p.mean, i, s, f.mean);
    spread(p.scale, i, s, f.scale);
    spread(p.shift, i, s, f.shift);
}

template <class A> static void forward_strips(const Call& q, const Loops<A>& l) {
    each_strip<A>(q, [&](Strip<A>& p) {
        Moments m[kColumns];
        const bool known = q.plan.stored || q.plan.reduced;
        if (!known) l.reduce_strip(q, p, m);
        for (int64_t i = 0; i < p.channels; ++i) {
            const int64_t ch = p.first + i, at = p.group * q.shape.c + ch;
            if (known) plan_known(q, at, ch);
            else plan_channel(q, at, ch, m[i].n, m[i].n, m[i].mean, m[i].m2);
            spread_affine(p, i, q.shape.s, saved_affine<A>(q, at));
        }
        if (q.out) l.apply_rows(q, Strip<A>::vectors(p), p.cols, p.rows);
    });
}

template <class A> static void backward_strips(const Call& q, const Loops<A>& l, OnTheWay stored) {
    typedef Channel<A> Ch;
    const int64_t s = q.shape.s;
    each_strip<A>(q, [&](Strip<A>& p) {
        const int64_t base = p.group * q.shape.c + p.first;
        double sg[kColumns], sx[kColumns];
        for (int64_t i = 0; i < p.channels; ++i) {
            const int64_t at = base + i, ch = p.first + i;
            spread_affine(p, i, s, Ch::seen(q, at, ch));
            if (!q.plan.summed) q.sum_g[at] = q.sum_gx[at] = 0;
            if (stored) spread(p.pull_scale, i, s, scale_on_the_way<A>(q, stored, at, ch));
            sg[i] = sx[i] = 0;
        }
        const Vectors<A> f = Strip<A>::vectors(p);
        if (q.wants_sums) {
            clear_sums(p);
            for (int64_t r = p.rows.first; r < p.rows.last; r += kLastRows) {
                l.sums_rows(q, f, p.cols, {r, least(r + kLastRows, p.rows.last)}, p.s1, p.s2);
                for (int64_t i = 0; i < p.channels; ++i) {
                    sg[i] += sum(p.s1 + i * s, s);
                    sx[i] += sum(p.s2 + i * s, s);
                }
                clear_sums(p);
            }
            for (int64_t i = 0; i < p.channels; ++i) Ch::settle(q, base + i, p.first + i, sg[i], sx[i]);
        }
        if (stored == kDx || !q.wants_dx) return;
        for (int64_t i = 0; i < p.channels; ++i) {
            const Pull<A> t = Ch::pulled(q, base + i, p.first + i);
            spread(p.centre, i, s, t.centre);
            spread(p.pull_scale, i, s, t.scale);
            spread(p.u, i, s, t.u);
            spread(p.v, i, s, t.v);
        }
        l.pull_rows(of_pull(q, stored), f, p.cols, p.rows);
    });
}

// The entry points ----------------------------------------------------------------------------------------------

// body(value of the data's type, value of the arithmetic's).
template <class Body> static void by_type(int dtype, const Body& body) {
    switch (dtype) {
        case kFloat32: body(float{}, float{}); break;
        case kFloat64: body(double{}, double{}); break;
        case kBFloat16: body(BF16{}, float{}); break;
        default: body(F16{}, float{}); break;
    }
}

template <class A> static void forward_with(const Call& q, const Loops<A>& l) {
    if (short_runs(q, l.bytes)) forward_strips(q, l);
    else if (q.shape.last) forward_rows(q, l);
    else forward_planes(q, l);
}

static void forward(const Call& q) {
    if (q.shape.n * q.shape.s == 0) {
        // Nothing is normalised, but the backward asks what would have been: others' samples decide it.
        for (int64_t at = 0; at < q.shape.groups * q.shape.c; ++at) plan_known(q, at, at % q.shape.c);
        return;
    }
    by_type(q.dtype, [&](auto t, auto a) { forward_with(q, going_forward<decltype(t), decltype(a)>(q)); });
}

template <class A> static void backward_with(const Call& q, const Loops<A>& l, OnTheWay stored) {
    if (short_runs(q, l.bytes)) backward_strips(q, l, stored);
    else if (q.shape.last) backward_rows(q, l, stored);
    else backward_planes(q, l, stored);
}

static void backward(const Call& given) {
    Call q = given;
    // Nothing of dx waits for the sums, or asks for x: one pass instead of two.
    const bool at_once = q.source != kInvert && without_share(q) && q.wants_dx && !q.plan.summed;
    q.wants_sums = !q.plan.summed && (q.wants_sums || at_once);
    const bool costly = (q.activation == kSilu || q.activation == kGelu) && q.wants_sums && q.wants_dx;
    const OnTheWay stored = at_once ? kDx : costly ? kGated : kNothing;
    by_type(q.dtype,
            [&](auto t, auto a) { backward_with(q, going_back<decltype(t), decltype(a)>(q, stored), stored); });
}

template <class A> static void reduce_with(const Call& q, const Loops<A>& l) {
    const Blocks b = blocks_of(q.shape);
    const int64_t all = q.shape.groups * q.shape.c;
    auto done = [&](int64_t at, int64_t, const Moments& m, double n2) {
        q.saved[kCount * all + at] = m.n;
        q.saved[kCountSquared * all + at] = n2;
        q.saved[kBatchMean * all + at] = m.mean;
        q.saved[kM2 * all + at] = m.m2;
    };
    if (short_runs(q, l.bytes)) {
        each_strip<A>(q, [&](Strip<A>& p) {
            Moments m[kColumns];
            l.reduce_strip(q, p, m);
            for (int64_t i = 0; i < p.channels; ++i) done(p.group * q.shape.c + p.first + i, 0, m[i], m[i].n);
        });
    } else if (q.shape.last) {
        reduce_all_rows(q, b, l, done);
    } else {
        reduce_planes(q, b, l, done);
    }
}

static void reduce(const Call& q) {
    by_type(q.dtype, [&](auto t, auto a) { reduce_with(q, reducing<decltype(t), decltype(a)>(q)); });
}

}  // namespace BN_NS
}  // namespace bn
