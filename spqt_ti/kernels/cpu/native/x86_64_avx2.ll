; Sums of 16-bit products on x86-64 CPUs with AVX2 and without AVX-512 VNNI, in halves of a vector.
; Every function is inlined into its caller.
; Assembled by: llvm-as-15 --opaque-pointers=0 x86_64_avx2.ll -o x86_64_avx2.bc
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-f80:128-n8:16:32:64-S128"
target triple = "x86_64-pc-linux-gnu"

declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <16 x i16> @llvm.x86.avx2.pmul.hr.sw(<16 x i16>, <16 x i16>)
declare <8 x i32> @llvm.x86.avx2.permd(<8 x i32>, <8 x i32>)

; *sum += low half of *a * low half of *b + high half of *a * high half of *b, all signed 16-bit, in every lane.
; LLVM makes one instruction of product and sum where the CPU has AVX-VNNI.
define void @dot2(<16 x i32>* %sum, <16 x i32>* %a, <16 x i32>* %b) alwaysinline {
  %s = load <16 x i32>, <16 x i32>* %sum
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %x0 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %x1 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %x0w = bitcast <8 x i32> %x0 to <16 x i16>
  %x1w = bitcast <8 x i32> %x1 to <16 x i16>
  %y0 = shufflevector <16 x i32> %y, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %y1 = shufflevector <16 x i32> %y, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %y0w = bitcast <8 x i32> %y0 to <16 x i16>
  %y1w = bitcast <8 x i32> %y1 to <16 x i16>
  %p0 = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %x0w, <16 x i16> %y0w)
  %p1 = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %x1w, <16 x i16> %y1w)
  %p = shufflevector <8 x i32> %p0, <8 x i32> %p1, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %r = add <16 x i32> %s, %p
  store <16 x i32> %r, <16 x i32>* %sum
  ret void
}

; *sum += the four bytes of *a, unsigned, * the four bytes of *b, signed, in every lane. Two neighbours' products together
; are below 2^15: bytes of *a up to 127.
define void @dot4(<16 x i32>* %sum, <16 x i32>* %a, <16 x i32>* %b) alwaysinline {
  %s = load <16 x i32>, <16 x i32>* %sum
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %x0 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %x1 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %x0b = bitcast <8 x i32> %x0 to <32 x i8>
  %x1b = bitcast <8 x i32> %x1 to <32 x i8>
  %y0 = shufflevector <16 x i32> %y, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %y1 = shufflevector <16 x i32> %y, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %y0b = bitcast <8 x i32> %y0 to <32 x i8>
  %y1b = bitcast <8 x i32> %y1 to <32 x i8>
  %q0 = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %x0b, <32 x i8> %y0b)
  %p0 = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %q0, <16 x i16> <i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1>)
  %q1 = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %x1b, <32 x i8> %y1b)
  %p1 = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %q1, <16 x i16> <i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1, i16 1>)
  %p = shufflevector <8 x i32> %p0, <8 x i32> %p1, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %r = add <16 x i32> %s, %p
  store <16 x i32> %r, <16 x i32>* %sum
  ret void
}

; *out = *fields * *v / 64, rounded, in every 16-bit half; *fields are below 64.
define void @times(<16 x i32>* %fields, <16 x i32>* %v, <16 x i32>* %out) alwaysinline {
  %x = load <16 x i32>, <16 x i32>* %fields
  %y = load <16 x i32>, <16 x i32>* %v
  %x0 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %x1 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %x0w = bitcast <8 x i32> %x0 to <16 x i16>
  %x1w = bitcast <8 x i32> %x1 to <16 x i16>
  %y0 = shufflevector <16 x i32> %y, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %y1 = shufflevector <16 x i32> %y, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %y0w = bitcast <8 x i32> %y0 to <16 x i16>
  %y1w = bitcast <8 x i32> %y1 to <16 x i16>
  %s0 = shl <16 x i16> %x0w, <i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9>
  %m0 = call <16 x i16> @llvm.x86.avx2.pmul.hr.sw(<16 x i16> %s0, <16 x i16> %y0w)
  %i0 = bitcast <16 x i16> %m0 to <8 x i32>
  %s1 = shl <16 x i16> %x1w, <i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9>
  %m1 = call <16 x i16> @llvm.x86.avx2.pmul.hr.sw(<16 x i16> %s1, <16 x i16> %y1w)
  %i1 = bitcast <16 x i16> %m1 to <8 x i32>
  %r = shufflevector <8 x i32> %i0, <8 x i32> %i1, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  store <16 x i32> %r, <16 x i32>* %out
  ret void
}

; *out[i] = *v[*lanes[i]].
define void @pick(<16 x i32>* %v, <16 x i32>* %lanes, <16 x i32>* %out) alwaysinline {
  %x = load <16 x i32>, <16 x i32>* %v
  %l = load <16 x i32>, <16 x i32>* %lanes
  %x0 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %x1 = shufflevector <16 x i32> %x, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %l0 = shufflevector <16 x i32> %l, <16 x i32> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %l1 = shufflevector <16 x i32> %l, <16 x i32> poison, <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %a0 = call <8 x i32> @llvm.x86.avx2.permd(<8 x i32> %x0, <8 x i32> %l0)
  %b0 = call <8 x i32> @llvm.x86.avx2.permd(<8 x i32> %x1, <8 x i32> %l0)
  %c0 = icmp sgt <8 x i32> %l0, <i32 7, i32 7, i32 7, i32 7, i32 7, i32 7, i32 7, i32 7>
  %r0 = select <8 x i1> %c0, <8 x i32> %b0, <8 x i32> %a0
  %a1 = call <8 x i32> @llvm.x86.avx2.permd(<8 x i32> %x0, <8 x i32> %l1)
  %b1 = call <8 x i32> @llvm.x86.avx2.permd(<8 x i32> %x1, <8 x i32> %l1)
  %c1 = icmp sgt <8 x i32> %l1, <i32 7, i32 7, i32 7, i32 7, i32 7, i32 7, i32 7, i32 7>
  %r1 = select <8 x i1> %c1, <8 x i32> %b1, <8 x i32> %a1
  %r = shufflevector <8 x i32> %r0, <8 x i32> %r1, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  store <16 x i32> %r, <16 x i32>* %out
  ret void
}

; *sum += low half of *a * low half of *b + high half of *a * high half of *b, all signed 16-bit, in each of eight lanes.
define void @dot2_of_8(<8 x i32>* %sum, <8 x i32>* %a, <8 x i32>* %b) alwaysinline {
  %s = load <8 x i32>, <8 x i32>* %sum
  %x = load <8 x i32>, <8 x i32>* %a
  %y = load <8 x i32>, <8 x i32>* %b
  %xw = bitcast <8 x i32> %x to <16 x i16>
  %yw = bitcast <8 x i32> %y to <16 x i16>
  %p = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %xw, <16 x i16> %yw)
  %r = add <8 x i32> %s, %p
  store <8 x i32> %r, <8 x i32>* %sum
  ret void
}

; Quants of two columns, 32 bytes each at *base + 8 times the offsets that stand at *place and behind it: their 16-bit words
; side by side in a lane. *out0: words 0-3 and 8-11, *out1: words 4-7 and 12-15.
define void @two_columns(i64* %base, i64* %place, <8 x i32>* %out0, <8 x i32>* %out1) alwaysinline {
  %b = load i64, i64* %base
  %a = load i64, i64* %place
  %p = inttoptr i64 %a to i64*
  %o = load i64, i64* %p, align 8
  %o8 = shl i64 %o, 3
  %at = add i64 %b, %o8
  %q = inttoptr i64 %at to <16 x i16>*
  %x = load <16 x i16>, <16 x i16>* %q, align 32
  %p1 = getelementptr i64, i64* %p, i64 1
  %o1 = load i64, i64* %p1, align 8
  %o18 = shl i64 %o1, 3
  %at1 = add i64 %b, %o18
  %q1 = inttoptr i64 %at1 to <16 x i16>*
  %y = load <16 x i16>, <16 x i16>* %q1, align 32
  %l = shufflevector <16 x i16> %x, <16 x i16> %y, <16 x i32> <i32 0, i32 16, i32 1, i32 17, i32 2, i32 18, i32 3, i32 19, i32 8, i32 24, i32 9, i32 25, i32 10, i32 26, i32 11, i32 27>
  %h = shufflevector <16 x i16> %x, <16 x i16> %y, <16 x i32> <i32 4, i32 20, i32 5, i32 21, i32 6, i32 22, i32 7, i32 23, i32 12, i32 28, i32 13, i32 29, i32 14, i32 30, i32 15, i32 31>
  %li = bitcast <16 x i16> %l to <8 x i32>
  %hi = bitcast <16 x i16> %h to <8 x i32>
  store <8 x i32> %li, <8 x i32>* %out0
  store <8 x i32> %hi, <8 x i32>* %out1
  ret void
}

; *out = the 32 bits at *address in each of eight lanes.
define void @broadcast32_to_8(i64* %address, <8 x i32>* %out) alwaysinline {
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to i32*
  %x = load i32, i32* %p, align 4
  %v = insertelement <8 x i32> poison, i32 %x, i32 0
  %r = shufflevector <8 x i32> %v, <8 x i32> poison, <8 x i32> zeroinitializer
  store <8 x i32> %r, <8 x i32>* %out
  ret void
}

; *out = *a in lanes 0-7, *b in lanes 8-15.
define void @join(<8 x i32>* %a, <8 x i32>* %b, <16 x i32>* %out) alwaysinline {
  %x = load <8 x i32>, <8 x i32>* %a
  %y = load <8 x i32>, <8 x i32>* %b
  %r = shufflevector <8 x i32> %x, <8 x i32> %y, <16 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  store <16 x i32> %r, <16 x i32>* %out
  ret void
}
