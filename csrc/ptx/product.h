// The matrix unit: D (64 x N, float32 in registers) = A (64 x 16) B (16 x N) + D, issued by a warpgroup.
//
// B comes from shared memory, A from shared memory or registers; both are 16-bit numbers. In shared memory a
// tile is columns of atoms, an atom eight rows of 64 numbers (128 bytes) under the 128-byte swizzle.
// K-major: the dimension summed over runs along those rows. MN-major: it runs across them.
//
// Fragments, for lane l of warp w of the group: d[i] is D[16 w + l / 4 + 8 (i / 2 % 2)][8 (i / 4) + 2 (l % 4) + i % 2],
// and a[i] holds A[16 w + l / 4 + 8 (i % 2)][8 (i / 2) + 2 (l % 4) + {0, 1}].
#pragma once
#include "ptx/number.h"
#include "ptx/target.h"

namespace ptx {

enum Major { K_MAJOR = 0, MN_MAJOR = 1 };

// Describes an operand in shared memory. `stride_bytes`: from one group of eight rows to the next.
// `leading_bytes`, of MN-major operands: from one 64-wide column of atoms to the next.
DEVICE uint64_t operand(uint32_t address, int stride_bytes, int leading_bytes = 16) {
    constexpr uint64_t SWIZZLE_128_BYTES = 1ull << 62;
    return SWIZZLE_128_BYTES | static_cast<uint64_t>(stride_bytes >> 4) << 32 |
           static_cast<uint64_t>(leading_bytes >> 4) << 16 | ((address & 0x3ffff) >> 4);
}

// Moves an operand's start by so many bytes.
DEVICE uint64_t advance(uint64_t operand, int bytes) { return operand + (bytes >> 4); }

// Registers and shared memory written so far are ready for the products that follow.
DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends the group of products that the warpgroup has issued since the last one.
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most Pending groups are still under way.
template <int Pending>
DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Keeps the compiler from moving uses of accumulators across a fence or a wait.
template <int Count>
DEVICE void pin(float (&registers)[Count]) {
    UNROLL
    for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// The same for accumulators whose old values nobody needs.
template <int Count>
DEVICE void renew(float (&registers)[Count]) {
    UNROLL
    for (int i = 0; i < Count; ++i) asm volatile("" : "=f"(registers[i])::"memory");
}

// Product<T, N>::shared(d, a, b, accumulate): both operands in shared memory.
// Product<T, N>::registers(d, a, b, accumulate): A's fragments in registers. accumulate = 0 ignores the old D.
template <class T, int N>
struct Product;

// The operands of the assembly text: N / 2 accumulators, in eights.
#define ATTNKERN_EIGHT(i)                                                                                       \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define ATTNKERN_TEXT_32             \
    "%0, %1, %2, %3, %4, %5, %6, %7" \
    ", %8, %9, %10, %11, %12, %13, %14, %15"
#define ATTNKERN_REGISTERS_32 ATTNKERN_EIGHT(0), ATTNKERN_EIGHT(8)
#define ATTNKERN_TEXT_64                       \
    ATTNKERN_TEXT_32                           \
    ", %16, %17, %18, %19, %20, %21, %22, %23" \
    ", %24, %25, %26, %27, %28, %29, %30, %31"
#define ATTNKERN_REGISTERS_64 ATTNKERN_REGISTERS_32, ATTNKERN_EIGHT(16), ATTNKERN_EIGHT(24)
#define ATTNKERN_TEXT_80 \
    ATTNKERN_TEXT_64     \
    ", %32, %33, %34, %35, %36, %37, %38, %39"
#define ATTNKERN_REGISTERS_80 ATTNKERN_REGISTERS_64, ATTNKERN_EIGHT(32)
#define ATTNKERN_TEXT_96 \
    ATTNKERN_TEXT_80     \
    ", %40, %41, %42, %43, %44, %45, %46, %47"
#define ATTNKERN_REGISTERS_96 ATTNKERN_REGISTERS_80, ATTNKERN_EIGHT(40)
#define ATTNKERN_TEXT_128                      \
    ATTNKERN_TEXT_96                           \
    ", %48, %49, %50, %51, %52, %53, %54, %55" \
    ", %56, %57, %58, %59, %60, %61, %62, %63"
#define ATTNKERN_REGISTERS_128 ATTNKERN_REGISTERS_96, ATTNKERN_EIGHT(48), ATTNKERN_EIGHT(56)
#define ATTNKERN_TEXT_160                      \
    ATTNKERN_TEXT_128                          \
    ", %64, %65, %66, %67, %68, %69, %70, %71" \
    ", %72, %73, %74, %75, %76, %77, %78, %79"
#define ATTNKERN_REGISTERS_160 ATTNKERN_REGISTERS_128, ATTNKERN_EIGHT(64), ATTNKERN_EIGHT(72)
#define ATTNKERN_TEXT_176                      \
    ATTNKERN_TEXT_128                          \
    ", %64, %65, %66, %67, %68, %69, %70, %71" \
    ", %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87"
#define ATTNKERN_REGISTERS_176 ATTNKERN_REGISTERS_128, ATTNKERN_EIGHT(64), ATTNKERN_EIGHT(72), ATTNKERN_EIGHT(80)
#define ATTNKERN_TEXT_192 \
    ATTNKERN_TEXT_176     \
    ", %88, %89, %90, %91, %92, %93, %94, %95"
#define ATTNKERN_REGISTERS_192 ATTNKERN_REGISTERS_176, ATTNKERN_EIGHT(88)
#define ATTNKERN_TEXT_256                              \
    ATTNKERN_TEXT_192                                  \
    ", %96, %97, %98, %99, %100, %101, %102, %103"     \
    ", %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119" \
    ", %120, %121, %122, %123, %124, %125, %126, %127"
#define ATTNKERN_REGISTERS_256 \
    ATTNKERN_REGISTERS_192, ATTNKERN_EIGHT(96), ATTNKERN_EIGHT(104), ATTNKERN_EIGHT(112), ATTNKERN_EIGHT(120)

// P0 ... P6 are the numbers of the operands that follow the accumulators.
#define ATTNKERN_PRODUCT(TYPE, MNEMONIC, N, P0, P1, P2, P3, P4, P5, P6)                                              \
    template <>                                                                                                      \
    struct Product<TYPE, N> {                                                                                        \
        template <Major MajorA, Major MajorB>                                                                        \
        static DEVICE void shared(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {                       \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2                                                      \
                         ", 0;\n"                                                                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MNEMONIC "." MNEMONIC                     \
                         " {" ATTNKERN_TEXT_##N "}, " P0 ", " P1 ", p, 1, 1, " P3 ", " P4 ";\n}\n"                   \
                         : ATTNKERN_REGISTERS_##N                                                                    \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(int(MajorA)), "n"(int(MajorB)));                     \
        }                                                                                                            \
        template <Major MajorB>                                                                                      \
        static DEVICE void registers(float (&d)[N / 2], const uint32_t* a, uint64_t b, int accumulate) {             \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P5                                                      \
                         ", 0;\n"                                                                                    \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." MNEMONIC "." MNEMONIC                     \
                         " {" ATTNKERN_TEXT_##N "}, {" P0 ", " P1 ", " P2 ", " P3 "}, " P4 ", p, 1, 1, " P6 ";\n}\n" \
                         : ATTNKERN_REGISTERS_##N                                                                    \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(int(MajorB)));   \
        }                                                                                                            \
    };
#define ATTNKERN_PRODUCTS(N, ...)                  \
    ATTNKERN_PRODUCT(bf16, "bf16", N, __VA_ARGS__) \
    ATTNKERN_PRODUCT(fp16, "f16", N, __VA_ARGS__)

ATTNKERN_PRODUCTS(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
ATTNKERN_PRODUCTS(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
ATTNKERN_PRODUCTS(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
ATTNKERN_PRODUCTS(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
ATTNKERN_PRODUCTS(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
ATTNKERN_PRODUCTS(160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
ATTNKERN_PRODUCTS(176, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
ATTNKERN_PRODUCTS(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
ATTNKERN_PRODUCTS(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef ATTNKERN_PRODUCTS
#undef ATTNKERN_PRODUCT

}  // namespace ptx
