// The arithmetic on channel vectors: what the batch's moments become before they normalise. In double.
#pragma once
#include <cmath>

#include "vec.h"

namespace bn {
namespace BN_NS {

// Limits that meet leave nothing to clip, whatever the value is.
BN_INLINE double clamp(double v, double low, double high) { return v < low || low == high ? low : v > high ? high : v; }

BN_INLINE double at_or_0(const double* v, int64_t i) { return v ? v[i] : 0; }

// Writes the rows of one group and channel; at is group * C + channel.
static void plan_channel(const Call& q, int64_t at, int64_t channel, double n, double n2, double mean, double m2) {
    const Plan& p = q.plan;
    const Numbers& k = p.numbers;
    const int64_t rows = q.shape.groups * q.shape.c, i = p.by_group ? at : channel;
    double* s = q.saved + at;
    auto row = [&](Row r) -> double& { return s[r * rows]; };
    if (p.centred) m2 = about_mean(mean, m2);
    else m2 = about_zero(n, mean, m2), mean = 0;
    const double safe = n > 0 ? n : 1, pm = at_or_0(p.pm, i), far = mean - pm;
    double own = m2 / safe, share = k.share, ratio = 1, follow = 1, offset = 0;
    if (k.spread != 0) own += k.spread * (far * far);
    double used = times(k.mean, mean) + times(1 - k.mean, pm);
    double var = at_or_0(p.rest, i) + times(k.share, k.log ? std::log(own) : own);
    if (k.log) {
        var = std::exp(var);
        share = own > 0 ? share * var / own : 0;
    }
    double centre = times(1 - k.spread, mean) + times(k.spread, pm);
    if (k.low != 1 || k.high != 1)
        (k.quiet ? follow : ratio) = clamp(__builtin_sqrt((var + p.eps) / (at_or_0(p.pv, i) + p.eps)), k.low, k.high);
    if (k.shift != 0) offset = clamp(far / __builtin_sqrt(at_or_0(p.pv, i) + p.eps), -k.shift, k.shift);
    if (n <= 0 && !p.stored) {
        // A group of padding alone: a NaN of its population must not reach the gradient of weight as 0 * NaN.
        used = centre = offset = share = 0;
        var = ratio = follow = 1;
    }
    const double invstd = 1 / __builtin_sqrt(var + p.eps);
    const double gamma = q.gamma ? q.gamma[channel] : 1, beta = q.beta ? q.beta[channel] : 0;
    row(kCount) = n;
    row(kCountSquared) = n2;
    row(kBatchMean) = mean;
    row(kM2) = m2;
    row(kMean) = used;
    row(kInvstd) = invstd;
    row(kCentre) = centre;
    row(kShare) = share / safe;
    row(kRatio) = ratio;
    row(kOffset) = offset;
    row(kScale) = invstd * ratio * gamma;
    row(kShift) = offset * gamma + beta;
    row(kFollow) = follow;
}

// The same from moments that are there already, or from none.
BN_INLINE void plan_known(const Call& q, int64_t at, int64_t channel) {
    if (q.plan.planned) return;
    const int64_t rows = q.shape.groups * q.shape.c;
    const double* s = q.saved + at;
    if (q.plan.stored) plan_channel(q, at, channel, 0, 0, 0, 0);
    else plan_channel(q, at, channel, s[kCount * rows], s[kCountSquared * rows], s[kBatchMean * rows], s[kM2 * rows]);
}

// What the loops over data read, in their own precision: the mean's low part goes into the shift.
template <class A> struct Affine { A mean, scale, shift; };

template <class A> BN_INLINE Affine<A> affine(double mean, double scale, double shift) {
    const A high = static_cast<A>(mean);
    const double low = mean - static_cast<double>(high);
    // A mean of infinity has no low part.
    return {high, static_cast<A>(scale), static_cast<A>(finite(low) ? shift - low * scale : shift)};
}

// dx = scale * g - w * (u + v * (x - centre)).
template <class A> struct Pull { A centre, scale, u, v; };

template <class A> BN_INLINE Pull<A> pull(double centre, double scale, double u, double v) {
    const A high = static_cast<A>(centre);
    const double low = centre - static_cast<double>(high);
    return {high, static_cast<A>(scale), static_cast<A>(finite(low) ? u - v * low : u), static_cast<A>(v)};
}

// From the sums of g and g * xhat to u and v.
BN_INLINE void pull_channel(const Call& q, int64_t at, int64_t channel, double sum_g, double sum_gx, double& scale,
                            double& u, double& v) {
    const int64_t rows = q.shape.groups * q.shape.c, i = q.plan.by_group ? at : channel;
    const double* s = q.saved + at;
    const Pulled& p = q.plan.pull;
    const double gamma = q.gamma ? q.gamma[channel] : 1, n = s[kCount * rows], safe = n > 0 ? n : 1;
    const double invstd = s[kInvstd * rows];
    scale = invstd * gamma * s[kRatio * rows] * s[kFollow * rows];
    const double own_u = (p.given ? p.own_u : q.plan.numbers.mean) / safe,
                 own_v = p.given ? p.own_v / safe : s[kShare * rows];
    u = own_u == 0 ? 0 : own_u * scale * sum_g;
    v = own_v == 0 ? 0 : own_v * scale * sum_gx * invstd;
    if (p.base_u) u += p.base_u[i];
    if (p.base_v) v += p.base_v[i] * (invstd * invstd);
}

template <class A> BN_INLINE Affine<A> saved_affine(const Call& q, int64_t at) {
    const int64_t rows = q.shape.groups * q.shape.c;
    return affine<A>(q.saved[kMean * rows + at], q.saved[kScale * rows + at], q.saved[kShift * rows + at]);
}

// Whether dx is known before the sums are: the batch has no share in the statistics that normalised it.
BN_INLINE bool without_share(const Call& q) {
    const Pulled& p = q.plan.pull;
    return q.plan.stored || (p.given && p.own_u == 0 && p.own_v == 0 && !p.base_u && !p.base_v);
}

// What a backward asks of one channel. Where the output is inverted, the data are z = gamma * xhat + beta.
template <class A> struct Channel {
    BN_INLINE double middle(const Call& q, int64_t at, int64_t ch) {
        if (q.source == kInvert) return q.beta ? q.beta[ch] : 0;
        return q.saved[kMean * q.shape.groups * q.shape.c + at];
    }
    // xhat is the centred data times this.
    BN_INLINE double unit(const Call& q, int64_t at, int64_t ch) {
        if (q.source == kInvert) return 1 / (q.gamma ? q.gamma[ch] : 1);
        return q.saved[kInvstd * q.shape.groups * q.shape.c + at];
    }
    // For the sign that the activation saw; its mean also centres the sums.
    BN_INLINE Affine<A> seen(const Call& q, int64_t at, int64_t ch) {
        return q.source == kInvert ? affine<A>(middle(q, at, ch), 0, 0) : saved_affine<A>(q, at);
    }
    // The sums were centred about the high part of the mean.
    BN_INLINE void settle(const Call& q, int64_t at, int64_t ch, double sg, double sx) {
        if (q.plan.summed) return;
        const double m = middle(q, at, ch), low = m - static_cast<double>(static_cast<A>(m));
        q.sum_g[at] = sg;
        q.sum_gx[at] = (finite(low) ? sx - low * sg : sx) * unit(q, at, ch);
    }
    BN_INLINE Pull<A> pulled(const Call& q, int64_t at, int64_t ch) {
        const int64_t all = q.shape.groups * q.shape.c;
        const double* const* given = q.pull;
        if (given[0]) return pull<A>(given[0][at], given[1][at], given[2][at], given[3][at]);
        double scale, u, v, centre = q.saved[kCentre * all + at];
        pull_channel(q, at, ch, q.sum_g[at], q.sum_gx[at], scale, u, v);
        if (q.source == kInvert) {
            centre = middle(q, at, ch);
            v = u == 0 && v == 0 ? 0 : v / q.saved[kInvstd * all + at] * unit(q, at, ch);
        }
        return pull<A>(centre, scale, u, v);
    }
};

}  // namespace BN_NS
}  // namespace bn
