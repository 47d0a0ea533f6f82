// The extension module: pointers and sizes come in as integers, so it is built without torch and serves every version.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "call.h"
#include "recurrence.h"
#include "update.h"

namespace nb = nanobind;
using namespace bn;

namespace {

typedef uintptr_t Address;

std::vector<const Table*> supported() {
    std::vector<const Table*> found{&table_base()};
#ifdef BN_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2) found.push_back(&table_avx2());
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        found.push_back(&table_avx512());
#endif
    return found;
}

std::atomic<const Table*> chosen{nullptr};
std::atomic<bool> forked{false};

const Table& table() {
    const Table* t = chosen.load(std::memory_order_relaxed);
    if (!t) {
        t = supported().back();
        chosen.store(t);
    }
    return *t;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Table* t : supported()) names.push_back(t->name);
    return names;
}

bool choose(const std::string& name) {
    for (const Table* t : supported()) {
        if (t->name == name) {
            chosen.store(t);
            return true;
        }
    }
    return false;
}

// Data of one call as the caller describes them.
struct Data {
    int dtype;
    Shape shape;
    int threads;
    int64_t values() const { return shape.n * shape.s; }  // of a channel
    int64_t rows() const { return shape.groups * shape.c; }
    bool wide() const { return dtype == kFloat64; }
};

// Values that make a thread worth its waking.
constexpr int64_t kGrain = int64_t{1} << 16;

// Outputs of this many bytes leave the cache before anybody reads them.
constexpr int64_t kStreams = int64_t{1} << 23;

template <class T> T* at(Address p) { return reinterpret_cast<T*>(p); }

double read(const void* p, int dtype, int64_t i) {
    switch (dtype) {
        case kFloat32: return static_cast<double>(static_cast<const float*>(p)[i]);
        case kFloat64: return static_cast<const double*>(p)[i];
        case kBFloat16: {
            const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p)[i]) << 16;
            float f;
            static_assert(sizeof f == sizeof bits, "");
            __builtin_memcpy(&f, &bits, sizeof f);
            return static_cast<double>(f);
        }
        default: {
            const uint16_t h = static_cast<const uint16_t*>(p)[i];
            const int exponent = (h >> 10) & 31, fraction = h & 1023;
            const double sign = h & 0x8000 ? -1 : 1;
            if (exponent == 31) return fraction ? std::nan("") : sign * HUGE_VAL;
            return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
        }
    }
}

// A channel vector in double, or null where the layer has none.
const double* widened(Address p, int dtype, int64_t c, double* to) {
    if (!p) return nullptr;
    for (int64_t i = 0; i < c; ++i) to[i] = read(at<void>(p), dtype, i);
    return to;
}

// Sample weights in the arithmetic's type; kind 1 is bool, 2 float, 3 double.
struct Weights {
    std::unique_ptr<unsigned char[]> own;
    const void* data = nullptr;
};

template <class To> void converted(Address p, int kind, int64_t n, void* room) {
    To* to = static_cast<To*>(room);
    for (int64_t i = 0; i < n; ++i) {
        // Bytes, not bool: any nonzero byte is data.
        if (kind == 1) to[i] = at<const unsigned char>(p)[i] ? 1 : 0;
        else to[i] = static_cast<To>(kind == 2 ? static_cast<double>(at<const float>(p)[i]) : at<const double>(p)[i]);
    }
}

Weights weights_of(Address p, int kind, const Data& d) {
    Weights w;
    if (!kind) return w;
    if (kind == (d.wide() ? 3 : 2)) {
        w.data = at<void>(p);
        return w;
    }
    const int64_t n = d.values();
    w.own.reset(new unsigned char[static_cast<size_t>(n) * (d.wide() ? 8 : 4)]);
    w.data = w.own.get();
    if (d.wide()) converted<double>(p, kind, n, w.own.get());
    else converted<float>(p, kind, n, w.own.get());
    return w;
}

// A call with all that it needs room for: the caller's vectors of doubles, the scratch, weights, and what each group's
// weigh.
struct Pass {
    std::unique_ptr<double[]> room;
    Weights weights;
    std::vector<Count> counts;
    Call q{};

    Pass(const Data& d, Address x, Address w, int weight_kind, int64_t doubles)
        : room(new double[static_cast<size_t>(doubles + scratch_doubles(d.shape))]),
          weights(weights_of(w, weight_kind, d)) {
        const int64_t size = d.wide() ? 8 : d.dtype == kFloat32 ? 4 : 2, all = d.values() * d.shape.c;
        q.dtype = d.dtype;
        q.shape = d.shape;
        // A forked child would hang in the pool its parent used; little work is done before another thread has woken.
        const int worth = static_cast<int>(std::min<int64_t>(d.threads, all / kGrain));
        q.threads = forked.load(std::memory_order_relaxed) ? 1 : std::max(1, worth);
        q.scratch = room.get() + doubles;
        q.wants_dx = q.wants_sums = true;
        q.streams = all * size >= kStreams;
        q.x = at<void>(x);
        q.weights = weights.data;
    }

    // What a reduction asks of the weights.
    void weigh_groups(const Data& d) {
        if (!q.weights) return;
        counts.resize(static_cast<size_t>(d.shape.groups));
        if (d.wide()) weigh(d.shape, static_cast<const double*>(q.weights), counts.data());
        else weigh(d.shape, static_cast<const float*>(q.weights), counts.data());
        q.counts = counts.data();
    }
};

// One value, or repetitions that sum to one: no variance corrected for its own mean.
bool any_too_few(const std::vector<Count>& counts, bool reliability) {
    double all = 0;
    for (const Count& k : counts) {
        if (k.n > 0 && k.n2 > 0 && k.n * k.n / k.n2 <= 1 + kSameWeight) return true;
        all += k.n;
    }
    return all > 0 && !reliability && all <= 1 + 1e-4;
}

// Channel vectors in double: the population's and what joins the variance, C values or groups x C; 0 for none.
struct Vectors {
    Address pm, pv, rest, from_mean, from_var;
    bool by_group;
};

Plan plan_of(const Spec& s) {
    Plan p{};
    p.numbers = s.numbers;
    p.eps = s.eps;
    p.centred = s.centred;
    p.stored = s.stored;
    return p;
}

// The training forward, or inference with the stored statistics: moments, arithmetic, output, and the running
// statistics where `moves`. saved has kRows rows of groups x C, the first four of them filled in where `reduced`.
int forward(const Spec& spec, const Data& d, Address x, Address y, Address residual, Address weights, int weight_kind,
            Address gamma, Address beta, int parameter_dtype, Address saved, const Vectors& v, Address mean,
            Address var, bool wide_statistics, Address tracked, Address skipped, bool moves, bool reduced) {
    nb::gil_scoped_release released;
    const int64_t c = d.shape.c;
    Pass pass(d, x, weights, weight_kind, 4 * c);
    double* vectors = pass.room.get();
    Call& q = pass.q;
    if (!spec.stored && !reduced) pass.weigh_groups(d);
    if (any_too_few(pass.counts, spec.reliability)) return kTooFew;
    q.out = at<void>(y);
    q.residual = at<void>(residual);
    q.gamma = widened(gamma, parameter_dtype, c, vectors);
    q.beta = widened(beta, parameter_dtype, c, vectors + c);
    q.saved = at<double>(saved);
    q.activation = spec.activation;
    q.slope = spec.slope;
    q.plan = plan_of(spec);
    q.plan.reduced = reduced;
    q.plan.by_group = v.by_group;
    q.plan.pm = at<double>(v.pm);
    q.plan.pv = at<double>(v.pv);
    q.plan.rest = at<double>(v.rest);
    if (d.values() > 0 || reduced) table().forward(q);
    if (!moves) return kDone;
    const Stored to{at<void>(mean), at<void>(var), wide_statistics};
    const int status =
        move(spec, q.shape, q.saved, to, at<double>(v.from_mean), at<double>(v.from_var), vectors + 2 * c);
    if (status == kDone && tracked) ++*at<int64_t>(tracked);
    if (status == kSkipped && skipped) ++*at<int64_t>(skipped);
    return status;
}

// What a backward does: all, the sums alone, or what follows them.
enum Phase : int { kWhole = 0, kSums = 1, kRest = 2 };

// What a memory asks of the data, as rule.Sums has it: rows of the means of g and of g * xhat (g at the normalised
// data), of xhat and of its square. Whether all sums are finite.
bool means_of(const Call& q, double* means) {
    const int64_t all = q.shape.groups * q.shape.c;
    bool finite = true;
    for (int64_t i = 0; i < all; ++i) {
        const double* s = q.saved + i;
        const double n = s[kCount * all] > 0 ? s[kCount * all] : 1, invstd = s[kInvstd * all];
        const double gamma = q.gamma ? q.gamma[i % q.shape.c] : 1;
        const double factor = gamma * s[kRatio * all] * s[kFollow * all];
        const double off = s[kBatchMean * all] - s[kMean * all];
        means[i] = factor * q.sum_g[i] / n;
        means[all + i] = factor * q.sum_gx[i] / n;
        means[2 * all + i] = off * invstd;
        means[3 * all + i] = (s[kM2 * all] / n + off * off) * (invstd * invstd);
        finite = finite && std::isfinite(q.sum_g[i]) && std::isfinite(q.sum_gx[i]);
    }
    return finite;
}

// Gradients of weight and bias are written as float or double (`wide_parameters`), summed over groups; sums has two
// rows of groups x C, or is 0. With means, four rows more, whether all sums are finite.
bool backward(const Spec& spec, const Data& d, Address g, Address x, Address y, Address dx, Address dresidual,
              Address weights, int weight_kind, Address gamma, Address beta, int parameter_dtype, Address saved,
              Address dgamma, Address dbeta, bool wide_parameters, int source, bool pulls, double own_u, double own_v,
              Address base_u, Address base_v, bool by_group, Address sums, int phase, Address means) {
    nb::gil_scoped_release released;
    const int64_t c = d.shape.c, all = d.rows();
    Pass pass(d, x, weights, weight_kind, 2 * c + 2 * all);
    double* vectors = pass.room.get();
    Call& q = pass.q;
    q.g = at<void>(g);
    q.y_in = at<void>(y);
    q.out = at<void>(dx);
    q.out_residual = at<void>(dresidual);
    q.gamma = widened(gamma, parameter_dtype, c, vectors);
    q.beta = widened(beta, parameter_dtype, c, vectors + c);
    q.sum_g = sums ? at<double>(sums) : vectors + 2 * c;
    q.sum_gx = q.sum_g + all;
    q.saved = at<double>(saved);
    q.plan = plan_of(spec);
    q.plan.by_group = by_group;
    q.plan.summed = phase == kRest;
    q.plan.pull = {pulls, own_u, own_v, at<double>(base_u), at<double>(base_v)};
    q.activation = spec.activation;
    q.slope = spec.slope;
    q.source = source;
    q.wants_dx = dx != 0 && phase != kSums;
    if (d.values() > 0) table().backward(q);
    else if (phase != kRest) std::fill_n(q.sum_g, 2 * all, 0.0);
    const bool finite = !means || means_of(q, at<double>(means));
    if (phase == kRest) return finite;
    const double *ratio = q.saved + kRatio * all, *offset = q.saved + kOffset * all;
    const Stored to{at<void>(dgamma), at<void>(dbeta), wide_parameters};
    for (int64_t ch = 0; ch < c; ++ch) {
        double dg = 0, db = 0;
        for (int64_t i = ch; i < all; i += c) {
            dg += q.sum_gx[i] * ratio[i] + q.sum_g[i] * offset[i];
            db += q.sum_g[i];
        }
        if (dgamma) to.set(to.mean, ch, dg);
        if (dbeta) to.set(to.var, ch, db);
    }
    return finite;
}

// The single passes are parts of these: channel vectors are rows of groups x C in double, at the addresses given.
void reduce(const Data& d, Address x, Address weights, int weight_kind, Address rows, bool centred) {
    nb::gil_scoped_release released;
    const int64_t all = d.rows();
    if (d.values() == 0) {
        std::fill_n(at<double>(rows), 4 * all, 0.0);
        return;
    }
    Pass pass(d, x, weights, weight_kind, 0);
    pass.weigh_groups(d);
    pass.q.saved = at<double>(rows);
    table().reduce(pass.q);
    double *n = pass.q.saved, *mean = n + kBatchMean * all, *m2 = n + kM2 * all;
    for (int64_t i = 0; i < all; ++i) {
        m2[i] = centred ? about_mean(mean[i], m2[i]) : about_zero(n[i], mean[i], m2[i]);
        if (!centred) mean[i] = 0;
    }
}

// With the rows of `saved` that a pass reads, of those at the addresses given.
Pass planned(const Data& d, Address x, Address weights, int weight_kind,
             std::initializer_list<std::pair<Row, Address>> given) {
    const int64_t all = d.rows();
    Pass pass(d, x, weights, weight_kind, kRows * all);
    pass.q.saved = pass.room.get();
    std::fill_n(pass.q.saved, kRows * all, 0.0);
    for (const auto& [row, from] : given) std::copy_n(at<const double>(from), all, pass.q.saved + row * all);
    pass.q.plan.reduced = pass.q.plan.planned = true;
    return pass;
}

void apply(const Data& d, Address x, Address y, Address weights, int weight_kind, Address mean, Address scale,
           Address shift) {
    nb::gil_scoped_release released;
    Pass pass = planned(d, x, weights, weight_kind, {{kMean, mean}, {kScale, scale}, {kShift, shift}});
    pass.q.out = at<void>(y);
    table().forward(pass.q);
}

void backward_reduce(const Data& d, Address g, Address x, Address weights, int weight_kind, Address mean,
                     Address invstd, Address sum_g, Address sum_gx) {
    nb::gil_scoped_release released;
    Pass pass = planned(d, x, weights, weight_kind, {{kMean, mean}, {kInvstd, invstd}});
    pass.q.g = at<void>(g);
    pass.q.sum_g = at<double>(sum_g);
    pass.q.sum_gx = at<double>(sum_gx);
    pass.q.wants_dx = false;
    table().backward(pass.q);
}

void backward_apply(const Data& d, Address g, Address x, Address dx, Address weights, int weight_kind, Address centre,
                    Address scale, Address u, Address v) {
    nb::gil_scoped_release released;
    Pass pass = planned(d, x, weights, weight_kind, {{kMean, centre}});
    pass.q.g = at<void>(g);
    pass.q.out = at<void>(dx);
    pass.q.plan.summed = true;
    const Address rows[] = {centre, scale, u, v};
    for (int i = 0; i < 4; ++i) pass.q.pull[i] = at<const double>(rows[i]);
    table().backward(pass.q);
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);
    nb::class_<Spec>(m, "Spec").def(
        "__init__", [](Spec* s, double mean, double share, double spread, bool log, double low, double high, bool quiet,
                       double shift, double gain, double q, double p, double r, bool root, int correction, double eps,
                       bool centred, bool stored, int activation, double slope, bool reliability, int nonfinite) {
            new (s) Spec{{mean, share, spread, log, low, high, quiet, shift},
                         {gain, q, p, r, root, correction},
                         eps,
                         centred,
                         stored,
                         activation,
                         slope,
                         reliability,
                         nonfinite};
        });
    nb::class_<Vectors>(m, "Vectors")
        .def("__init__", [](Vectors* v, Address pm, Address pv, Address rest, Address from_mean, Address from_var,
                            bool by_group) { new (v) Vectors{pm, pv, rest, from_mean, from_var, by_group}; });
    nb::class_<Data>(m, "Data").def(
        "__init__", [](Data* d, int dtype, int64_t n, int64_t c, int64_t s, bool last, int64_t groups, int threads) {
            new (d) Data{dtype, {n, c, s, groups, last}, threads};
        });
    m.attr("ROWS") = static_cast<int>(kRows);
    m.def("forward", &forward);
    m.def("backward", &backward);
    m.def("reduce", &reduce);
    m.def("apply", &apply);
    m.def("backward_reduce", &backward_reduce);
    m.def("backward_apply", &backward_apply);
    m.def("recurrence",
          [](int64_t rows, int64_t c, Address x, Address gain, bool wide_gain, Address start, Address out) {
              nb::gil_scoped_release released;
              recurrence(rows, c, at<double>(x), at<double>(gain), wide_gain, at<double>(start), at<double>(out));
          });
    m.def("ring_sum",
          [](Address ring, bool wide, int64_t rows, int64_t c, int64_t left_out, double scale, bool log, Address out) {
              if (wide) ring_sum(at<const double>(ring), rows, c, left_out, scale, log, at<double>(out));
              else ring_sum(at<const float>(ring), rows, c, left_out, scale, log, at<double>(out));
          });
    m.def("instruction_sets", &instruction_sets);
    m.def("instruction_set", [] { return std::string(table().name); });
    m.def("choose", &choose);
    m.def("serial", [] { forked.store(true); });
}
