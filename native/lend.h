// Pooled memory as a tensor: a DLPack capsule, whose layout is fixed by its specification, so no torch header is needed.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "call.h"
#include "pool.h"

namespace bn {

// DLPack 0.8 (dmlc/dlpack, include/dlpack/dlpack.h).
struct DLDevice { int32_t type, id; };
struct DLDataType { uint8_t code, bits; uint16_t lanes; };
struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};
struct DLManagedTensor {
    DLTensor tensor;
    void* context;
    void (*deleter)(DLManagedTensor*);
};

// Never destroyed: tensors may outlive the interpreter. A forked child begins with a pool of its own, since another
// thread of the parent may have held the lock.
inline Pool*& pool() {
    static Pool* one = new Pool;
    return one;
}

struct Loan {
    DLManagedTensor managed;
    size_t size;
    std::vector<int64_t> sizes;  // shape, then strides
};

inline void give_back(DLManagedTensor* managed) {
    Loan* loan = static_cast<Loan*>(managed->context);
    pool()->give(managed->tensor.data, loan->size);
    delete loan;
}

// A capsule for a dense tensor with these strides, or None where nothing may lie idle or the system gives no memory.
inline nanobind::object lend(int dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    if (!pool()->limit()) return nanobind::none();
    static const DLDataType types[] = {{2, 32, 1}, {2, 64, 1}, {4, 16, 1}, {2, 16, 1}};
    const DLDataType type = types[dtype];
    size_t bytes = type.bits / 8;
    for (const int64_t n : shape) bytes *= static_cast<size_t>(n);
    Loan* loan = new Loan;
    void* data = pool()->take(bytes, loan->size);
    if (!data) {
        delete loan;
        return nanobind::none();
    }
    loan->sizes = shape;
    loan->sizes.insert(loan->sizes.end(), strides.begin(), strides.end());
    const int32_t dims = static_cast<int32_t>(shape.size());
    loan->managed = {{data, {1, 0}, dims, type, loan->sizes.data(), loan->sizes.data() + dims, 0}, loan, give_back};
    // Whoever takes the tensor out renames the capsule and owns it; otherwise it dies with the capsule.
    PyObject* capsule = PyCapsule_New(&loan->managed, "dltensor", [](PyObject* o) {
        if (PyCapsule_IsValid(o, "dltensor")) give_back(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(o, "dltensor")));
    });
    if (!capsule) {
        give_back(&loan->managed);
        nanobind::raise_python_error();
    }
    return nanobind::steal(capsule);
}

}  // namespace bn
