// Memory that MSL kernels read and write, with every access checked: bounds, races, and threadgroup memory that is read
// before anybody has written it. An access aborts the launch by emulator::fail.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace emulator {

// Who has touched a granule (the element that the host sees) since `epoch` began. Threads are numbered from 1.
struct Access {
    uint32_t epoch, writer, reader, written_in;
};
constexpr uint32_t MANY = 0xFFFFFFFF, ATOMIC = 0xFFFFFFFE;

enum class Kind { read, write, atomic };

// The thread that runs now. `epoch` grows at every barrier and `group` with every group, over all launches.
struct Now {
    uint32_t thread, epoch, group;
};
inline Now now{0, 1, 1};

inline char message[512];
[[noreturn]] void abandon();

[[noreturn]] inline void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    abandon();
}

// `bytes` of memory, in granules. Threads of a group may exchange `shared` memory across a barrier; device memory
// belongs, for the whole of a task, to the threads that touch it first. Memory that nobody writes to has no log.
struct Memory {
    const char* name;
    unsigned char* bytes;
    uint64_t size;
    Access* log;
    uint32_t granule;
    bool shared;

    void check(uint64_t index, uint64_t width, Kind kind) {
        if (index >= size / width)
            fail("thread %u: %s[%lld] is outside its %llu elements", now.thread - 1, name, (long long)(int64_t)index,
                 (unsigned long long)(size / width));
        if (!log && kind == Kind::read) return;
        if (!log) fail("thread %u writes %s, which Taichi says is only read", now.thread - 1, name);
        if (width < granule) fail("%s has elements of %u bytes and is accessed as if of %u", name, granule, (unsigned)width);
        for (uint64_t at = index * width / granule; at < (index + 1) * width / granule; at++) note(at, kind);
    }

private:
    void note(uint64_t at, Kind kind) {
        Access& a = log[at];
        const uint32_t epoch = shared ? now.epoch : 1, me = now.thread;
        if (a.epoch != epoch) a.epoch = epoch, a.writer = a.reader = 0;
        if (kind == Kind::read) {
            if (a.writer && a.writer != me) race(at, "reads", a.writer, "wrote");
            if (shared && a.written_in != now.group)
                fail("thread %u reads %s[%llu], threadgroup memory that no thread of its group has written", me - 1, name,
                     (unsigned long long)at);
            a.reader = a.reader && a.reader != me ? MANY : me;
            return;
        }
        const uint32_t mark = kind == Kind::atomic ? ATOMIC : me;
        if (a.writer && a.writer != mark) race(at, "writes", a.writer, "wrote");
        if (a.reader && a.reader != me) race(at, "writes", a.reader, "read");
        a.writer = mark;
        a.written_in = now.group;
    }

    [[noreturn]] void race(uint64_t at, const char* does, uint32_t other, const char* did) {
        char who[32] = "another thread";
        if (other == ATOMIC) snprintf(who, sizeof who, "an atomic");
        else if (other != MANY) snprintf(who, sizeof who, "thread %u", other - 1);
        fail("race: thread %u %s %s[%llu], which %s %s %s", now.thread - 1, does, name, (unsigned long long)at, who, did,
             shared ? "since the last barrier" : "in the same task");
    }
};

// `(device atomic_int*)&x[i]` as MSL has it: an atomic access to an element.
template <class T> struct Place {
    Memory* memory;
    int64_t index;
    template <class A> operator A*() const {
        static_assert(sizeof(typename A::value) == sizeof(T), "an atomic of another size than the element");
        memory->check(index, sizeof(T), Kind::atomic);
        return reinterpret_cast<A*>(memory->bytes + index * sizeof(T));
    }
};

template <class T> struct Element {
    Memory* memory;
    int64_t index;
    operator T() const {
        memory->check(index, sizeof(T), Kind::read);
        T value;
        std::memcpy(&value, memory->bytes + index * sizeof(T), sizeof(T));
        return value;
    }
    const Element& operator=(T value) const {
        memory->check(index, sizeof(T), Kind::write);
        std::memcpy(memory->bytes + index * sizeof(T), &value, sizeof(T));
        return *this;
    }
    const Element& operator=(const Element& other) const { return *this = static_cast<T>(other); }
    Place<T> operator&() const { return {memory, index}; }
#define COMPOUND(op) \
    const Element& operator op##=(T by) const { return *this = static_cast<T>(static_cast<T>(*this) op by); }
    COMPOUND(+) COMPOUND(-) COMPOUND(*) COMPOUND(/) COMPOUND(&) COMPOUND(|) COMPOUND(^) COMPOUND(<<) COMPOUND(>>)
#undef COMPOUND
};

// The unbounded array at the end of a buffer's struct.
template <class T> struct Array {
    Memory* memory;
    Element<T> operator[](int64_t index) const { return {memory, index}; }
};

// An array in threadgroup memory. One group runs at a time, so one copy is enough.
template <class T, unsigned n> struct Shared {
    T values[n];
    Access log[n] = {};
    Memory memory;
    explicit Shared(const char* name)
        : memory{name, reinterpret_cast<unsigned char*>(values), sizeof values, log, sizeof(T), true} {}
    Element<T> operator[](int64_t index) { return {&memory, index}; }
};

}  // namespace emulator
