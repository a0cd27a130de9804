; Sums of 16-bit products, and what else wants AVX-512, on x86-64 CPUs with AVX-512 VNNI.
; Every function is inlined into its caller.
; Assembled by: llvm-as-15 --opaque-pointers=0 x86_64_vnni.ll -o x86_64_vnni.bc
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-f80:128-n8:16:32:64-S128"
target triple = "x86_64-pc-linux-gnu"

declare <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32>, <16 x i32>, <16 x i32>)
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <16 x i32>, <16 x i32>)
declare <32 x i16> @llvm.x86.avx512.pmul.hr.sw.512(<32 x i16>, <32 x i16>)
declare <16 x i32> @llvm.x86.avx512.permvar.si.512(<16 x i32>, <16 x i32>)
declare <16 x i32> @llvm.x86.avx512.mask.compress.v16i32(<16 x i32>, <16 x i32>, <16 x i1>)
declare i16 @llvm.ctpop.i16(i16)

; *sum += low half of *a * low half of *b + high half of *a * high half of *b, all signed 16-bit, in every lane.
define void @dot2(<16 x i32>* %sum, <16 x i32>* %a, <16 x i32>* %b) alwaysinline {
  %s = load <16 x i32>, <16 x i32>* %sum
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %r = call <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32> %s, <16 x i32> %x, <16 x i32> %y)
  store <16 x i32> %r, <16 x i32>* %sum
  ret void
}

; *sum += the four bytes of *a, unsigned, * the four bytes of *b, signed, in every lane.
define void @dot4(<16 x i32>* %sum, <16 x i32>* %a, <16 x i32>* %b) alwaysinline {
  %s = load <16 x i32>, <16 x i32>* %sum
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %s, <16 x i32> %x, <16 x i32> %y)
  store <16 x i32> %r, <16 x i32>* %sum
  ret void
}

; *out = *fields * *v / 64, rounded, in every 16-bit half; *fields are below 64.
define void @times(<16 x i32>* %fields, <16 x i32>* %v, <16 x i32>* %out) alwaysinline {
  %f = load <16 x i32>, <16 x i32>* %fields
  %x = load <16 x i32>, <16 x i32>* %v
  %fw = bitcast <16 x i32> %f to <32 x i16>
  %xw = bitcast <16 x i32> %x to <32 x i16>
  %fs = shl <32 x i16> %fw, <i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9, i16 9>
  %r = call <32 x i16> @llvm.x86.avx512.pmul.hr.sw.512(<32 x i16> %fs, <32 x i16> %xw)
  %i = bitcast <32 x i16> %r to <16 x i32>
  store <16 x i32> %i, <16 x i32>* %out
  ret void
}

; *out[i] = *v[*lanes[i]].
define void @pick(<16 x i32>* %v, <16 x i32>* %lanes, <16 x i32>* %out) alwaysinline {
  %x = load <16 x i32>, <16 x i32>* %v
  %l = load <16 x i32>, <16 x i32>* %lanes
  %r = call <16 x i32> @llvm.x86.avx512.permvar.si.512(<16 x i32> %x, <16 x i32> %l)
  store <16 x i32> %r, <16 x i32>* %out
  ret void
}

; The numbers *first + i of the lanes of *v above *threshold, in order, as 32-bit integers to *address, which then is
; the address behind them. All 64 bytes from there on are written.
define void @append_above(<16 x float>* %v, float* %threshold, i32* %first, i64* %address) alwaysinline {
  %x = load <16 x float>, <16 x float>* %v
  %t = load float, float* %threshold
  %t0 = insertelement <16 x float> poison, float %t, i32 0
  %ts = shufflevector <16 x float> %t0, <16 x float> poison, <16 x i32> zeroinitializer
  %m = fcmp ogt <16 x float> %x, %ts
  %f = load i32, i32* %first
  %f0 = insertelement <16 x i32> poison, i32 %f, i32 0
  %fs = shufflevector <16 x i32> %f0, <16 x i32> poison, <16 x i32> zeroinitializer
  %n = add <16 x i32> %fs, <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
  %c = call <16 x i32> @llvm.x86.avx512.mask.compress.v16i32(<16 x i32> %n, <16 x i32> zeroinitializer, <16 x i1> %m)
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to <16 x i32>*
  store <16 x i32> %c, <16 x i32>* %p, align 4
  %bits = bitcast <16 x i1> %m to i16
  %k = call i16 @llvm.ctpop.i16(i16 %bits)
  %w = zext i16 %k to i64
  %o = shl i64 %w, 2
  %b = add i64 %a, %o
  store i64 %b, i64* %address
  ret void
}

; Hide where *v comes from, so that it stays in a register: LLVM would otherwise load a constant again for every use,
; and broadcasting it from memory costs as much as an addition.
define void @keep16(<16 x i32>* %v) alwaysinline {
  %a = load <16 x i32>, <16 x i32>* %v
  %r = call <16 x i32> asm "", "=v,0"(<16 x i32> %a)
  store <16 x i32> %r, <16 x i32>* %v
  ret void
}
