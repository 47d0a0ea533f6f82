// The loops over data that one call uses: chosen once, by its dtype, activation, residual, weights and source, so that
// what decides who does which block is compiled once for each arithmetic type alone.
#pragma once
#include "short.h"

namespace bn {
namespace BN_NS {

template <class A> struct Loops {
    int64_t bytes;  // of a value
    // Of a block of a channel, contiguous.
    Moments (*reduce)(const Call&, const Blocks&, int64_t, int64_t, int64_t);
    void (*apply)(const Call&, const Blocks&, int64_t, int64_t, int64_t, const Affine<A>&);
    void (*sums)(const Call&, const Blocks&, int64_t, int64_t, int64_t, const Affine<A>&, A, double&, double&);
    void (*pull)(const Call&, const Blocks&, int64_t, int64_t, int64_t, const Affine<A>&, const Pull<A>&);
    // Of some rows, channels innermost.
    void (*reduce_rows)(const Call&, const Blocks&, int64_t, int64_t);
    void (*apply_rows)(const Call&, const Vectors<A>&, const Cols&, Range);
    void (*sums_rows)(const Call&, const Vectors<A>&, const Cols&, Range, A*, A*);
    void (*pull_rows)(const Call&, const Vectors<A>&, const Cols&, Range);
    void (*clear_row)(const Call&, int64_t);
    // Of neighbouring channels with short runs.
    void (*reduce_strip)(const Call&, Strip<A>&, Moments*);
};

template <class T, class A> static Loops<A> reducing(const Call& q) {
    Loops<A> l{};
    l.bytes = sizeof(T);
    l.reduce = q.weights ? reduce_block<T, A, true> : reduce_block<T, A, false>;
    l.reduce_rows = q.weights ? reduce_rows<T, A, true> : reduce_rows<T, A, false>;
    l.reduce_strip = reduce_strip<T, A>;
    return l;
}

template <class T, class A, int ACT, bool RES> static void choose_apply(Loops<A>& l) {
    l.apply = apply_block<T, A, false, ACT, RES>;
    l.apply_rows = apply_rows<T, A, ACT, RES>;
}

template <class T, class A> static void choose_plain_apply(const Call& q, Loops<A>& l) {
    choose_apply<T, A, kNone, false>(l);
    if (!q.weights) return;
    l.apply = apply_block<T, A, true, kNone, false>;
    l.apply_rows = apply_weighted_rows<T, A>;
}

template <class T, class A> static Loops<A> going_forward(const Call& q) {
    Loops<A> l = reducing<T, A>(q);
    const bool res = q.residual && !q.weights;
    const int act = q.weights ? static_cast<int>(kNone) : q.activation;
    if (act == kRelu) res ? choose_apply<T, A, kRelu, true>(l) : choose_apply<T, A, kRelu, false>(l);
    else if (act != kNone) res ? choose_apply<T, A, kCalled, true>(l) : choose_apply<T, A, kCalled, false>(l);
    else if (res) choose_apply<T, A, kNone, true>(l);
    else choose_plain_apply<T, A>(q, l);
    return l;
}

// What the sums' loop stores on the way: nothing; dx, where it does not wait for the sums; or the gradient behind an
// activation that is costly to follow back, in the place of dx.
enum OnTheWay : int { kNothing = 0, kDx = 1, kGated = 2 };

template <class T, class A, int ACT, int SRC> static void choose_pull(Loops<A>& l, OnTheWay stored) {
    constexpr bool RES = SRC == kOutput;
    l.sums = sums_block<T, A, false, ACT, SRC, false, RES>;
    l.sums_rows = sums_of_rows<T, A, ACT, SRC, false, RES>;
    l.pull = pull_block<T, A, false, ACT, SRC, RES>;
    l.pull_rows = pull_rows<T, A, false, ACT, SRC, RES>;
    if constexpr (SRC != kInvert) {
        if (!stored) return;
        l.sums = sums_block<T, A, false, ACT, SRC, true, RES>;
        l.sums_rows = sums_of_rows<T, A, ACT, SRC, true, RES>;
        if (stored != kGated) return;
        l.pull = pull_block<T, A, false, kNone, kRecompute, false>;
        l.pull_rows = pull_rows<T, A, false, kNone, kRecompute, false>;
    }
}

template <class T, class A> static Loops<A> going_back(const Call& q, OnTheWay stored) {
    Loops<A> l{};
    l.bytes = sizeof(T);
    if (q.weights) {
        choose_pull<T, A, kNone, kRecompute>(l, stored);
        l.sums = stored ? sums_block<T, A, true, kNone, kRecompute, true, false>
                        : sums_block<T, A, true, kNone, kRecompute, false, false>;
        l.clear_row = clear_row<T, A>;
        l.pull = pull_block<T, A, true, kNone, kRecompute, false>;
        l.pull_rows = pull_rows<T, A, true, kNone, kRecompute, false>;
    } else if (q.source == kInvert) {
        choose_pull<T, A, kLeakyRelu, kInvert>(l, stored);
    } else if (q.activation == kRelu) {
        q.source == kOutput ? choose_pull<T, A, kRelu, kOutput>(l, stored)
                            : choose_pull<T, A, kRelu, kRecompute>(l, stored);
    } else if (q.activation != kNone) {
        q.source == kOutput ? choose_pull<T, A, kCalled, kOutput>(l, stored)
                            : choose_pull<T, A, kCalled, kRecompute>(l, stored);
    } else {
        choose_pull<T, A, kNone, kRecompute>(l, stored);
    }
    return l;
}

}  // namespace BN_NS
}  // namespace bn
