; What Taichi cannot say on x86-64 CPUs with AVX-512 VNNI: sums of 16-bit products. Every function is inlined into its caller.
; Assembled by: llvm-as-15 --opaque-pointers=0 x86_64_vnni.ll -o x86_64_vnni.bc
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-f80:128-n8:16:32:64-S128"
target triple = "x86_64-pc-linux-gnu"

declare <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32>, <16 x i32>, <16 x i32>)
declare <8 x i32> @llvm.x86.avx512.vpdpwssd.256(<8 x i32>, <8 x i32>, <8 x i32>)
declare <8 x float> @llvm.fabs.v8f32(<8 x float>)
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)

; *sum += low half of *a * low half of *b + high half of *a * high half of *b, all signed 16-bit, in every lane.
define void @dot2(<16 x i32>* %sum, <16 x i32>* %a, <16 x i32>* %b) alwaysinline {
  %s = load <16 x i32>, <16 x i32>* %sum
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %r = call <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32> %s, <16 x i32> %x, <16 x i32> %y)
  store <16 x i32> %r, <16 x i32>* %sum
  ret void
}

; *sum += low half of *a + high half of *a, both signed 16-bit, in every lane.
define void @add2(<8 x i32>* %sum, <8 x i32>* %a) alwaysinline {
  %s = load <8 x i32>, <8 x i32>* %sum
  %x = load <8 x i32>, <8 x i32>* %a
  %r = call <8 x i32> @llvm.x86.avx512.vpdpwssd.256(<8 x i32> %s, <8 x i32> %x, <8 x i32> <i32 65537, i32 65537, i32 65537, i32 65537, i32 65537, i32 65537, i32 65537, i32 65537>)
  store <8 x i32> %r, <8 x i32>* %sum
  ret void
}

; Lanes 0-7 of *largest become the larger of themselves and the magnitudes of lanes 0-7 of *v.
define void @widen(<8 x float>* %largest, <16 x float>* %v) alwaysinline {
  %m = load <8 x float>, <8 x float>* %largest
  %w = load <16 x float>, <16 x float>* %v
  %low = shufflevector <16 x float> %w, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %a = call <8 x float> @llvm.fabs.v8f32(<8 x float> %low)
  %c = fcmp ogt <8 x float> %a, %m
  %r = select <8 x i1> %c, <8 x float> %a, <8 x float> %m
  store <8 x float> %r, <8 x float>* %largest
  ret void
}

; Lanes 0-7 of *a and *b times *steps, rounded to 16-bit integers: *a's in the low halves of *out, *b's in the high ones.
; Adding 1.5 * 2^23 leaves the integer in the low bits of the sum.
define void @pair16(<16 x float>* %a, <16 x float>* %b, <8 x float>* %steps, <8 x i32>* %out) alwaysinline {
  %x = load <16 x float>, <16 x float>* %a
  %y = load <16 x float>, <16 x float>* %b
  %s = load <8 x float>, <8 x float>* %steps
  %xl = shufflevector <16 x float> %x, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %yl = shufflevector <16 x float> %y, <16 x float> poison, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %xr = call <8 x float> @llvm.fma.v8f32(<8 x float> %xl, <8 x float> %s, <8 x float> <float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0>)
  %yr = call <8 x float> @llvm.fma.v8f32(<8 x float> %yl, <8 x float> %s, <8 x float> <float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0>)
  %xi = bitcast <8 x float> %xr to <8 x i32>
  %yi = bitcast <8 x float> %yr to <8 x i32>
  %low = and <8 x i32> %xi, <i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535>
  %high = shl <8 x i32> %yi, <i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16>
  %r = or <8 x i32> %low, %high
  store <8 x i32> %r, <8 x i32>* %out
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
