// Random calls of every pass, dtype, layout, group count, weighting and activation, on buffers of exactly the right
// size: whatever is read or written beyond them, or is undefined, stops the sanitizers.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "call.h"

using namespace bn;

namespace {

std::mt19937_64 random_bits(1);
int64_t below(int64_t n) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(n)); }

// Exactly n values, so that the next byte belongs to nobody.
struct Buffer {
    std::unique_ptr<unsigned char[]> bytes;
    Buffer(int dtype, int64_t n) {
        const int64_t size = dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
        bytes.reset(new unsigned char[static_cast<size_t>(n * size)]);
        std::normal_distribution<double> normal(1, 2);
        for (int64_t i = 0; i < n; ++i) {
            const double v = below(200) ? normal(random_bits) : below(2) ? __builtin_inf() : __builtin_nan("");
            if (dtype == kFloat64) reinterpret_cast<double*>(bytes.get())[i] = v;
            else if (dtype == kFloat32) reinterpret_cast<float*>(bytes.get())[i] = static_cast<float>(v);
            else reinterpret_cast<uint16_t*>(bytes.get())[i] = static_cast<uint16_t>(random_bits());
        }
    }
    void* get() { return bytes.get(); }
};

void one(const Table& table) {
    Call q{};
    q.dtype = static_cast<int>(below(4));
    const int64_t wide = below(20) == 0 ? 200000 : 40;
    q.shape = {1 + below(12), 1 + below(40), 1 + below(wide), 1, below(2) == 1};
    if (q.shape.n * q.shape.c * q.shape.s > 400000) q.shape.c = 1;
    q.shape.groups = 1 + below(q.shape.n);
    q.threads = 1 + static_cast<int>(below(3));
    const int64_t all = q.shape.n * q.shape.c * q.shape.s, rows = q.shape.groups * q.shape.c;
    Buffer x(q.dtype, all), g(q.dtype, all), y(q.dtype, all), out(q.dtype, all), res(q.dtype, all), dres(q.dtype, all);
    Buffer weights(q.dtype == kFloat64 ? kFloat64 : kFloat32, q.shape.n * q.shape.s);
    std::vector<double> scratch(static_cast<size_t>(scratch_doubles(q.shape)));
    std::vector<double> saved(static_cast<size_t>(kRows * rows), 0.5), vectors(static_cast<size_t>(8 * rows), 0.5);
    std::vector<double> given(static_cast<size_t>(rows), 0.6);
    std::vector<double> channel(static_cast<size_t>(4 * q.shape.c), 0.7);
    q.x = x.get();
    q.g = g.get();
    q.out = out.get();
    q.scratch = scratch.data();
    q.saved = saved.data();
    q.gamma = channel.data();
    q.beta = channel.data() + q.shape.c;
    auto weight = [] { return 0.5 * static_cast<double>(below(3)); };
    q.plan.numbers = {weight(), weight(), weight(), below(2) == 1, 0.5, 1 + weight(), below(2) == 1, weight()};
    q.plan.eps = 1e-5;
    q.plan.centred = below(2) == 1;
    q.plan.stored = below(4) == 0;
    q.plan.by_group = below(2) == 1;
    auto vector = [&]() -> const double* { return below(2) ? given.data() : nullptr; };
    q.plan.pm = vector();
    q.plan.pv = vector();
    q.plan.rest = vector();
    q.plan.pull = {below(2) == 1, weight(), weight(), vector(), vector()};
    q.sum_g = vectors.data();
    q.sum_gx = q.sum_g + rows;
    const double* rows_given = q.sum_gx + rows;
    q.wants_dx = below(4) != 0;
    q.wants_sums = below(4) != 0;
    q.slope = 0.1;
    q.weights = below(3) == 0 ? weights.get() : nullptr;
    std::vector<Count> counts(static_cast<size_t>(q.shape.groups));
    if (q.dtype == kFloat64) weigh(q.shape, static_cast<const double*>(weights.get()), counts.data());
    else weigh(q.shape, static_cast<const float*>(weights.get()), counts.data());
    if (q.weights) q.counts = counts.data();
    if (!q.weights) {
        q.activation = static_cast<int>(below(7));
        q.residual = below(2) ? res.get() : nullptr;
    }
    table.reduce(q);
    table.forward(q);
    q.plan.reduced = true;
    table.forward(q);
    q.plan.planned = true;
    table.forward(q);
    if (q.residual && q.activation) {
        q.source = kOutput;
        q.y_in = y.get();
        q.out_residual = dres.get();
    } else if (!q.weights && q.activation == kLeakyRelu && below(2)) {
        q.source = kInvert;
        q.y_in = y.get();
        q.x = nullptr;
    }
    table.backward(q);
    q.plan.summed = true;
    table.backward(q);
    for (int i = 0; i < 4; ++i) q.pull[i] = rows_given + i * rows;
    table.backward(q);
}

}  // namespace

int main(int count, char** arguments) {
    const int calls = count > 1 ? std::atoi(arguments[1]) : 1500;
    std::vector<const Table*> tables{&table_base()};
#ifdef BN_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&table_avx2());
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) tables.push_back(&table_avx512());
#endif
    for (const Table* table : tables) {
        for (int i = 0; i < calls; ++i) one(*table);
        std::printf("%s: %d random calls, nothing out of bounds and nothing undefined\n", table->name, calls);
    }
    return 0;
}
