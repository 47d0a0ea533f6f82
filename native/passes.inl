// The passes over whole tensors for one instruction set: who does which block, and what is merged in between.
// Included by passes_*.cpp, each of which names its own namespace in BN_NS.
#include "short.h"

namespace bn {
namespace BN_NS {

// Planes: contiguous (N, C, S) ----------------------------------------------------------------------------------

// Neighbouring channels go to one thread, so that short runs still make pages of contiguous memory.
template <class T> BN_INLINE int64_t channels_of_chunk(const Shape& q) {
    const int64_t bytes = q.s * static_cast<int64_t>(sizeof(T));
    const int64_t few = (4096 + bytes - 1) / bytes, share = q.c * q.groups / 8;
    const int64_t chunk = few < share ? few : share;
    return chunk < 1 ? 1 : chunk;
}

// body(group, channel) for every one; a thread takes several neighbouring channels.
template <class T, class Body> BN_INLINE void each_channel(const Call& q, Body&& body) {
    const int64_t chunk = channels_of_chunk<T>(q.shape), chunks = (q.shape.c + chunk - 1) / chunk;
    parallel(q.threads, q.shape.groups * chunks, [&](int64_t unit) {
        const int64_t group = unit / chunks, first = unit % chunks * chunk;
        for (int64_t c = first; c < least(first + chunk, q.shape.c); ++c) body(group, c);
    });
}

// Few channels and many threads: blocks, not channels, are what threads take.
BN_INLINE bool by_block(const Call& q, const Blocks& b) {
    return q.threads > 1 && b.count > 1 && q.shape.groups * q.shape.c < 2 * q.threads;
}

template <class T, class Body> BN_INLINE void each_block(const Call& q, const Blocks& b, Body&& body) {
    if (!by_block(q, b)) {
        each_channel<T>(q, [&](int64_t g, int64_t c) { for (int64_t k = 0; k < b.count; ++k) body(g, c, k); });
        return;
    }
    parallel(q.threads, q.shape.groups * q.shape.c * b.count, [&](int64_t unit) {
        body(unit / b.count / q.shape.c, unit / b.count % q.shape.c, unit % b.count);
    });
}

// The moments of every group and channel, for `done(at, channel, moments)`.
template <class T, class A, bool W, class Done> BN_INLINE void reduce_planes(const Call& q, const Blocks& b, Done&& done) {
    const int64_t c = q.shape.c;
    if (!by_block(q, b)) {
        each_channel<T>(q, [&](int64_t g, int64_t ch) {
            Moments m{0, 0, 0, 0};
            for (int64_t k = 0; k < b.count; ++k) merge(m, reduce_block<T, A, W>(q, b, g, ch, k));
            done(g * c + ch, ch, m);
        });
        return;
    }
    Moments* parts = reinterpret_cast<Moments*>(q.scratch);
    each_block<T>(q, b, [&](int64_t g, int64_t ch, int64_t k) {
        parts[(g * c + ch) * b.count + k] = reduce_block<T, A, W>(q, b, g, ch, k);
    });
    for (int64_t at = 0; at < q.shape.groups * c; ++at) {
        Moments m{0, 0, 0, 0};
        for (int64_t k = 0; k < b.count; ++k) merge(m, parts[at * b.count + k]);
        done(at, at % c, m);
    }
}

template <class T, class A, bool W, int ACT, bool RES>
static void apply_channel(const Call& q, const Blocks& b, int64_t g, int64_t ch, int64_t k, const Affine<A>& f) {
    runs_of(q.shape, b, g, ch, k, [&](int64_t at, int64_t n, int64_t wat) {
        apply_run<T, A, W, ACT, RES>(q, f, at, n, wat);
    });
}

template <class T, class A, bool W, int ACT, bool RES> static void forward_planes(const Call& q) {
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c;
    if (q.plan.coupling == kStored) {
        for (int64_t at = 0; at < q.shape.groups * c; ++at) plan_channel(q, at, at % c, 0, 0, 0, 0);
        if (!q.out) return;
    } else if (by_block(q, b)) {
        reduce_planes<T, A, W>(q, b, [&](int64_t at, int64_t ch, const Moments& m) {
            plan_channel(q, at, ch, m.n, m.n2, m.mean, m.m2);
        });
    } else {
        reduce_planes<T, A, W>(q, b, [&](int64_t at, int64_t ch, const Moments& m) {
            plan_channel(q, at, ch, m.n, m.n2, m.mean, m.m2);
            // While the channel is in cache, last block first.
            for (int64_t k = b.count; k-- > 0;)
                apply_channel<T, A, W, ACT, RES>(q, b, at / c, ch, k, saved_affine<A>(q, at));
        });
        return;
    }
    each_block<T>(q, b, [&](int64_t g, int64_t ch, int64_t k) {
        apply_channel<T, A, W, ACT, RES>(q, b, g, ch, k, saved_affine<A>(q, g * c + ch));
    });
}

template <class T, class A, bool W, int ACT, int SRC, bool RES, bool OUT> static void backward_planes(const Call& q) {
    typedef Channel<A, SRC> Ch;
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c, all = q.shape.groups * c;
    const A slope = static_cast<A>(q.slope), inverse = slope != 0 ? 1 / slope : 0;
    auto seen = [&](int64_t at, int64_t ch) -> Seen<A> { return {Ch::seen(q, at, ch), slope, inverse}; };
    auto block_sums = [&](int64_t g, int64_t ch, int64_t k, double& sg, double& sx) {
        const Seen<A> s = seen(g * c + ch, ch);
        const A scale = OUT ? Ch::pulled(q, g * c + ch, ch).scale : 0;
        Sums<A> t;
        t.sum_g = t.sum_gx = 0;
        Sums<A>::clear(t);
        runs_of(q.shape, b, g, ch, k, [&](int64_t at, int64_t n, int64_t wat) {
            sums_run<T, A, W, ACT, SRC, OUT, RES>(q, s, scale, at, n, wat, t);
        });
        Sums<A>::flush(t);
        sg += t.sum_g;
        sx += t.sum_gx;
    };
    auto pulled = [&](int64_t g, int64_t ch, int64_t k) {
        const Pull<A> f = Ch::pulled(q, g * c + ch, ch);
        const Seen<A> s = seen(g * c + ch, ch);
        runs_of(q.shape, b, g, ch, k, [&](int64_t at, int64_t n, int64_t wat) {
            pull_run<T, A, W, ACT, SRC, RES>(q, s, f, at, n, wat);
        });
    };
    const bool pulls = q.wants_dx && !OUT;
    for (int64_t at = 0; at < all; ++at) q.sum_g[at] = q.sum_gx[at] = 0;
    if (!q.wants_sums) {
        if (pulls) each_block<T>(q, b, pulled);
        return;
    }
    if (!by_block(q, b)) {
        each_channel<T>(q, [&](int64_t g, int64_t ch) {
            double sg = 0, sx = 0;
            for (int64_t k = 0; k < b.count; ++k) block_sums(g, ch, k, sg, sx);
            Ch::settle(q, g * c + ch, ch, sg, sx);
            if (pulls) for (int64_t k = b.count; k-- > 0;) pulled(g, ch, k);
        });
        return;
    }
    double* parts = q.scratch;
    each_block<T>(q, b, [&](int64_t g, int64_t ch, int64_t k) {
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
    if (pulls) each_block<T>(q, b, pulled);
}

// Rows: channels innermost ----------------------------------------------------------------------------------

template <class A> BN_INLINE Vectors<A> vectors_of(const Call& q, const Blocks& b, int64_t group) {
    const int64_t c = q.shape.c, all = q.shape.groups * c;
    A* p = reinterpret_cast<A*>(q.scratch + q.shape.groups * b.count * (5 * c + 4)) + group * c;
    return {p, p + all, p + 2 * all, p + 3 * all, p + 4 * all, p + 5 * all, p + 6 * all};
}

template <class Body> BN_INLINE void each_row_block(const Call& q, const Blocks& b, bool backwards, Body&& body) {
    const int64_t units = q.shape.groups * b.count;
    parallel(q.threads, units, [&](int64_t unit) {
        // The rows read last are the ones still in cache.
        const int64_t at = backwards ? units - 1 - unit : unit;
        body(at / b.count, at % b.count);
    });
}

// body(at, group, channel), in parallel where there is much to merge.
template <class Body> BN_INLINE void each_merge(const Call& q, const Blocks& b, Body&& body) {
    const int64_t all = q.shape.groups * q.shape.c, chunk = 64, chunks = (all + chunk - 1) / chunk;
    parallel(all * b.count > 16384 ? q.threads : 1, chunks, [&](int64_t unit) {
        for (int64_t at = unit * chunk; at < least(unit * chunk + chunk, all); ++at)
            body(at, at / q.shape.c, at % q.shape.c);
    });
}

template <class T, class A, bool W, class Done> BN_INLINE void reduce_all_rows(const Call& q, const Blocks& b, Done&& done) {
    each_row_block(q, b, false, [&](int64_t g, int64_t k) { reduce_rows<T, A, W>(q, b, g, k); });
    each_merge(q, b, [&](int64_t at, int64_t g, int64_t ch) {
        Moments m{0, 0, 0, 0};
        for (int64_t k = 0; k < b.count; ++k) {
            const BlockSums<A> t = BlockSums<A>::at(q.scratch, g * b.count + k, q.shape.c);
            merge(m, Moments{*t.n, *t.n2, t.mean[ch], t.m2[ch]});
        }
        done(at, ch, m);
    });
}

template <class A> BN_INLINE void set_affine(const Vectors<A>& f, int64_t ch, const Affine<A>& a) {
    f.mean[ch] = a.mean;
    f.scale[ch] = a.scale;
    f.shift[ch] = a.shift;
}

template <class T, class A, bool W, int ACT, bool RES> static void apply_all_rows(const Call& q, const Blocks& b) {
    each_row_block(q, b, true, [&](int64_t g, int64_t k) {
        apply_rows<T, A, W, ACT, RES>(q, vectors_of<A>(q, b, g), whole_rows(q.shape), rows_of(q.shape, b, g, k));
    });
}

template <class T, class A, bool W, int ACT, bool RES> static void forward_rows(const Call& q) {
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c;
    auto done = [&](int64_t at, int64_t ch, const Moments& m) {
        plan_channel(q, at, ch, m.n, m.n2, m.mean, m.m2);
        set_affine(vectors_of<A>(q, b, at / c), ch, saved_affine<A>(q, at));
    };
    if (q.plan.coupling == kStored) {
        for (int64_t at = 0; at < q.shape.groups * c; ++at) done(at, at % c, Moments{0, 0, 0, 0});
        if (!q.out) return;
    } else {
        reduce_all_rows<T, A, W>(q, b, done);
    }
    apply_all_rows<T, A, W, ACT, RES>(q, b);
}

template <class T, class A, bool W, int ACT, int SRC, bool RES, bool OUT> static void backward_rows(const Call& q) {
    typedef Channel<A, SRC> Ch;
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c, all = q.shape.groups * c;
    for (int64_t at = 0; at < all; ++at) {
        set_affine(vectors_of<A>(q, b, at / c), at % c, Ch::seen(q, at, at % c));
        q.sum_g[at] = q.sum_gx[at] = 0;
        if (OUT) vectors_of<A>(q, b, at / c).pull_scale[at % c] = Ch::pulled(q, at, at % c).scale;
    }
    if (q.wants_sums) {
        each_row_block(q, b, false, [&](int64_t g, int64_t k) {
            sums_rows<T, A, W, ACT, SRC, OUT, RES>(q, vectors_of<A>(q, b, g), b, g, k);
        });
    }
    each_merge(q, b, [&](int64_t at, int64_t g, int64_t ch) {
        double sg = 0, sx = 0;
        for (int64_t k = 0; q.wants_sums && k < b.count; ++k) {
            const BlockSums<A> t = BlockSums<A>::at(q.scratch, g * b.count + k, c);
            sg += t.mean[ch];
            sx += t.m2[ch];
        }
        Ch::settle(q, at, ch, sg, sx);
        const Pull<A> f = Ch::pulled(q, at, ch);
        const Vectors<A> to = vectors_of<A>(q, b, g);
        to.centre[ch] = f.centre;
        to.pull_scale[ch] = f.scale;
        to.u[ch] = f.u;
        to.v[ch] = f.v;
    });
    if (!q.wants_dx || OUT) return;
    each_row_block(q, b, true, [&](int64_t g, int64_t k) {
        pull_rows<T, A, W, ACT, SRC, RES>(q, vectors_of<A>(q, b, g), whole_rows(q.shape), rows_of(q.shape, b, g, k));
    });
}

// The single passes ---------------------------------------------------------------------------------------------

template <class T, class A, bool W> static void reduce_pass(const Call& q) {
    if constexpr (!W) {
        if (short_runs<T>(q)) return reduce_short<T, A>(q);
    }
    const Blocks b = blocks_of(q.shape);
    const int64_t all = q.shape.groups * q.shape.c;
    auto done = [&](int64_t at, int64_t, const Moments& m) {
        q.saved[kCount * all + at] = m.n;
        q.saved[kCountSquared * all + at] = m.n2;
        q.saved[kBatchMean * all + at] = m.mean;
        q.saved[kM2 * all + at] = m.m2;
    };
    if (q.shape.last) reduce_all_rows<T, A, W>(q, b, done);
    else reduce_planes<T, A, W>(q, b, done);
}

template <class T, class A, bool W> static void apply_pass(const Call& q) {
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c;
    auto at_row = [&](int64_t at) { return affine<A>(q.row_mean[at], q.row_scale[at], q.row_shift[at]); };
    if (q.shape.last) {
        for (int64_t at = 0; at < q.shape.groups * c; ++at) set_affine(vectors_of<A>(q, b, at / c), at % c, at_row(at));
        apply_all_rows<T, A, W, kNone, false>(q, b);
        return;
    }
    each_block<T>(q, b, [&](int64_t g, int64_t ch, int64_t k) {
        apply_channel<T, A, W, kNone, false>(q, b, g, ch, k, at_row(g * c + ch));
    });
}

template <class T, class A, bool W> static void backward_apply_pass(const Call& q) {
    const Blocks b = blocks_of(q.shape);
    const int64_t c = q.shape.c;
    auto at_row = [&](int64_t at) { return pull<A>(q.row_centre[at], q.row_scale[at], q.row_u[at], q.row_v[at]); };
    if (q.shape.last) {
        for (int64_t at = 0; at < q.shape.groups * c; ++at) {
            const Vectors<A> to = vectors_of<A>(q, b, at / c);
            const Pull<A> f = at_row(at);
            set_affine(to, at % c, Affine<A>{f.centre, 0, 0});
            to.centre[at % c] = f.centre;
            to.pull_scale[at % c] = f.scale;
            to.u[at % c] = f.u;
            to.v[at % c] = f.v;
        }
        each_row_block(q, b, true, [&](int64_t g, int64_t k) {
            pull_rows<T, A, W, kNone, kRecompute, false>(q, vectors_of<A>(q, b, g), whole_rows(q.shape), rows_of(q.shape, b, g, k));
        });
        return;
    }
    each_block<T>(q, b, [&](int64_t g, int64_t ch, int64_t k) {
        const Pull<A> f = at_row(g * c + ch);
        const Seen<A> s{{f.centre, 0, 0}, 0, 0};
        runs_of(q.shape, b, g, ch, k, [&](int64_t at, int64_t n, int64_t wat) {
            pull_run<T, A, W, kNone, kRecompute, false>(q, s, f, at, n, wat);
        });
    });
}

// From run-time codes to instantiations ----------------------------------------------------------------------

template <class Body> static void by_type(int dtype, Body&& body) {
    switch (dtype) {
        case kFloat32: body(float{}, float{}); break;
        case kFloat64: body(double{}, double{}); break;
        case kBFloat16: body(BF16{}, float{}); break;
        default: body(F16{}, float{}); break;
    }
}

template <class T, class A, bool W, int ACT, bool RES> static void forward_layout(const Call& q) {
    if constexpr (!W) {
        if (short_runs<T>(q)) return forward_short<T, A, ACT, RES>(q);
    }
    if (q.shape.last) forward_rows<T, A, W, ACT, RES>(q);
    else forward_planes<T, A, W, ACT, RES>(q);
}

template <class T, class A, bool W, int ACT, int SRC, bool RES> static void backward_layout(const Call& q) {
    if constexpr (!W) {
        if (short_runs<T>(q)) return backward_short<T, A, ACT, SRC, RES>(q);
        // Nothing of dx waits for the sums: one pass instead of two.
        if constexpr (SRC != kInvert) {
            if (without_share(q) && q.wants_sums && q.wants_dx) {
                if (q.shape.last) return backward_rows<T, A, W, ACT, SRC, RES, true>(q);
                return backward_planes<T, A, W, ACT, SRC, RES, true>(q);
            }
        }
    }
    if (q.shape.last) backward_rows<T, A, W, ACT, SRC, RES, false>(q);
    else backward_planes<T, A, W, ACT, SRC, RES, false>(q);
}

static void forward(const Call& q) {
    by_type(q.dtype, [&](auto t, auto a) {
        typedef decltype(t) T;
        typedef decltype(a) A;
        const bool res = q.residual != nullptr;
        if (q.weights) forward_layout<T, A, true, kNone, false>(q);
        else if (q.activation == kRelu && res) forward_layout<T, A, false, kRelu, true>(q);
        else if (q.activation == kRelu) forward_layout<T, A, false, kRelu, false>(q);
        else if (q.activation == kLeakyRelu && res) forward_layout<T, A, false, kLeakyRelu, true>(q);
        else if (q.activation == kLeakyRelu) forward_layout<T, A, false, kLeakyRelu, false>(q);
        else if (res) forward_layout<T, A, false, kNone, true>(q);
        else forward_layout<T, A, false, kNone, false>(q);
    });
}

static void backward(const Call& q) {
    by_type(q.dtype, [&](auto t, auto a) {
        typedef decltype(t) T;
        typedef decltype(a) A;
        if (q.weights) backward_layout<T, A, true, kNone, kRecompute, false>(q);
        else if (q.source == kInvert) backward_layout<T, A, false, kLeakyRelu, kInvert, false>(q);
        else if (q.activation == kRelu && q.source == kOutput) backward_layout<T, A, false, kRelu, kOutput, true>(q);
        else if (q.activation == kLeakyRelu && q.source == kOutput)
            backward_layout<T, A, false, kLeakyRelu, kOutput, true>(q);
        else if (q.activation == kRelu) backward_layout<T, A, false, kRelu, kRecompute, false>(q);
        else if (q.activation == kLeakyRelu) backward_layout<T, A, false, kLeakyRelu, kRecompute, false>(q);
        else backward_layout<T, A, false, kNone, kRecompute, false>(q);
    });
}

static void reduce(const Call& q) {
    by_type(q.dtype, [&](auto t, auto a) {
        if (q.weights) reduce_pass<decltype(t), decltype(a), true>(q);
        else reduce_pass<decltype(t), decltype(a), false>(q);
    });
}

static void apply(const Call& q) {
    by_type(q.dtype, [&](auto t, auto a) {
        if (q.weights) apply_pass<decltype(t), decltype(a), true>(q);
        else apply_pass<decltype(t), decltype(a), false>(q);
    });
}

// The sums alone are the backward without its second half.
static void backward_reduce(const Call& q) { backward(q); }

static void backward_apply(const Call& q) {
    by_type(q.dtype, [&](auto t, auto a) {
        if (q.weights) backward_apply_pass<decltype(t), decltype(a), true>(q);
        else backward_apply_pass<decltype(t), decltype(a), false>(q);
    });
}

}  // namespace BN_NS
}  // namespace bn
