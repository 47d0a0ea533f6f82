// Memory for outputs that has been used before: a page's first touch costs more than the arithmetic on it.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#define BN_POOL 1
#endif

namespace bn {

// Blocks come from the system and go back to it when more than `limit` bytes lie idle.
class Pool {
public:
    explicit Pool(size_t limit = size_t{1} << 30) : limit_(limit) {}

    // A block of at least so many bytes, aligned to a page; null where the system gives none.
    void* take(size_t bytes, size_t& size) {
        size = rounded(bytes);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            const auto found = idle_.lower_bound(size);
            // A block much larger than asked would be missed by those it fits.
            if (found != idle_.end() && found->first <= size + size / 4) {
                size = found->first;
                void* block = found->second;
                idle_.erase(found);
                idle_bytes_ -= size;
                return block;
            }
        }
        return fresh(size);
    }

    void give(void* block, size_t size) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            if (idle_bytes_ + size <= limit_) {
                // Before its equals: what was used last is the warmest, and the next to be lent.
                idle_.emplace_hint(idle_.lower_bound(size), size, block);
                idle_bytes_ += size;
                return;
            }
        }
        release(block, size);
    }

    // Idle blocks beyond the limit go back to the system; 0 keeps none from now on.
    void limit(size_t bytes) {
        std::multimap<size_t, void*> gone;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            limit_ = bytes;
            while (idle_bytes_ > limit_) {
                const auto last = --idle_.end();
                idle_bytes_ -= last->first;
                gone.insert(*last);
                idle_.erase(last);
            }
        }
        for (const auto& [size, block] : gone) release(block, size);
    }

    size_t limit() const { return limit_; }

    size_t idle() {
        std::lock_guard<std::mutex> lock(mutex_);
        return idle_bytes_;
    }

private:
    static constexpr size_t kHuge = size_t{1} << 21, kPage = 4096;

    static size_t rounded(size_t bytes) {
        const size_t unit = bytes >= 2 * kHuge ? kHuge : kPage;
        return (bytes + unit - 1) / unit * unit;
    }

#ifdef BN_POOL
    static void* fresh(size_t size) {
        // Huge pages need their own alignment: ask for one more and cut what is beside it.
        const size_t extra = size >= 2 * kHuge ? kHuge : 0;
        void* got = mmap(nullptr, size + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (got == MAP_FAILED) return nullptr;
        if (!extra) return got;
        char* first = static_cast<char*>(got);
        char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(first) + kHuge - 1) & ~(kHuge - 1));
        if (aligned > first) munmap(first, static_cast<size_t>(aligned - first));
        const size_t behind = static_cast<size_t>(first + size + extra - (aligned + size));
        if (behind) munmap(aligned + size, behind);
#ifdef MADV_HUGEPAGE
        madvise(aligned, size, MADV_HUGEPAGE);
#endif
        return aligned;
    }
    static void release(void* block, size_t size) { munmap(block, size); }
#else
    static void* fresh(size_t) { return nullptr; }
    static void release(void*, size_t) {}
#endif

    std::mutex mutex_;
    std::multimap<size_t, void*> idle_;
    size_t idle_bytes_ = 0;
    // Read without the lock: by a forked child of a pool that another thread of its parent held.
    std::atomic<size_t> limit_;
};

}  // namespace bn
