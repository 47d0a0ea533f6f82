// The arithmetic on channel vectors: what the batch's moments become before they normalise. In double.
#pragma once
#include <cmath>

#include "vec.h"

namespace bn {
namespace BN_NS {

// Limits that meet leave nothing to clip, whatever the value is.
BN_INLINE double clamp(double v, double low, double high) {
    return v < low || low == high ? low : v > high ? high : v;
}

// Writes the rows of one group and channel; at is group * C + channel.
static void plan_channel(const Call& q, int64_t at, int64_t channel, double n, double n2, double mean, double m2) {
    const Plan& p = q.plan;
    const int64_t rows = q.shape.groups * q.shape.c;
    double* s = q.saved + at;
    auto row = [&](Row r) -> double& { return s[r * rows]; };
    const double nan = __builtin_nan("");
    if (p.coupling == kSecondMoment || p.coupling == kAveraged) m2 = about_zero(n, mean, m2), mean = 0;
    else m2 = about_mean(mean, m2);
    const double batch_var = n > 0 ? m2 / n : nan;
    double used = mean, var = batch_var, share = 1, centre = mean, ratio = 1, offset = 0;
    if (p.coupling == kRenorm) {
        const double sigma = __builtin_sqrt(p.population_var[channel] + p.eps);
        ratio = clamp(__builtin_sqrt(batch_var + p.eps) / sigma, 1 / p.r_max, p.r_max);
        offset = clamp((mean - p.population_mean[channel]) / sigma, -p.d_max, p.d_max);
    } else if (p.coupling == kPopulation || p.coupling == kPopulationTotal) {
        const double a = p.gain, rest = 1 - a, m = p.population_mean[channel];
        used = times(a, mean) + times(rest, m);
        var = times(a, batch_var) + times(rest, p.population_var[channel]);
        if (p.coupling == kPopulationTotal) {
            var += times(a * rest, (mean - m) * (mean - m));
            centre = used;
        }
        share = p.detached ? 0 : a;
    } else if (p.coupling == kAveraged) {
        const double from = p.population_mean[channel];
        var = p.geometric ? std::exp(from + times(p.gain, std::log(batch_var))) : from + times(p.gain, batch_var);
        if (p.ratio != kNoRatio) {
            const double r = __builtin_sqrt((var + p.eps) / (p.population_var[channel] + p.eps));
            (p.ratio == kOutputRatio ? ratio : share) = clamp(r, 1 / p.r_max, p.r_max);
        }
    } else if (p.coupling == kStored) {
        used = centre = p.population_mean[channel];
        var = p.population_var[channel];
        share = 0;
    }
    if (n <= 0 && p.coupling != kStored) {
        // A group of padding alone: its NaN must not reach the gradient of weight as 0 * NaN.
        used = centre = offset = 0;
        var = ratio = share = 1;
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
    // Of averages it is what scales the gradient alone.
    row(kShare) = p.coupling == kAveraged ? share : share / (n > 0 ? n : 1);
    row(kRatio) = ratio;
    row(kOffset) = offset;
    row(kScale) = invstd * ratio * gamma;
    row(kShift) = offset * gamma + beta;
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

// From the sums of g and g * xhat to u and v, for every coupling in plan_channel.
BN_INLINE void pull_channel(const Call& q, int64_t at, int64_t channel, double sum_g, double sum_gx, double& scale,
                            double& u, double& v) {
    const int64_t rows = q.shape.groups * q.shape.c;
    const double* s = q.saved + at;
    const double gamma = q.gamma ? q.gamma[channel] : 1;
    scale = s[kInvstd * rows] * gamma * s[kRatio * rows];
    if (q.plan.coupling == kAveraged) {
        const double factor = gamma * s[kRatio * rows] * s[kShare * rows], n = s[kCount * rows], invstd = s[kInvstd * rows];
        scale = invstd * factor;
        u = 0;
        const double own = times(q.plan.gain, factor * sum_gx / (n > 0 ? n : 1));
        v = (q.plan.population_mean[channel] + own) * invstd * invstd;
        return;
    }
    const double a = s[kShare * rows] * scale;
    u = q.plan.coupling == kSecondMoment ? 0 : a * sum_g;
    v = a * sum_gx * s[kInvstd * rows];
    if (s[kShare * rows] == 0) u = v = 0;
}

template <class A> BN_INLINE Affine<A> saved_affine(const Call& q, int64_t at) {
    const int64_t rows = q.shape.groups * q.shape.c;
    return affine<A>(q.saved[kMean * rows + at], q.saved[kScale * rows + at], q.saved[kShift * rows + at]);
}

// Whether dx is known before the sums are: the batch has no share in the statistics that normalised it.
BN_INLINE bool without_share(const Call& q) { return q.plan.coupling == kStored || q.plan.detached; }

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
        const double m = middle(q, at, ch), low = m - static_cast<double>(static_cast<A>(m));
        q.sum_g[at] = sg;
        q.sum_gx[at] = (finite(low) ? sx - low * sg : sx) * unit(q, at, ch);
    }
    BN_INLINE Pull<A> pulled(const Call& q, int64_t at, int64_t ch) {
        const int64_t all = q.shape.groups * q.shape.c;
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
