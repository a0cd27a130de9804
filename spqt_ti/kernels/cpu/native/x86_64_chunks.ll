; What Taichi cannot say of prefill's 16-bit products on x86-64 CPUs. Every function is inlined into its caller.
; Assembled by: llvm-as-15 --opaque-pointers=0 x86_64_chunks.ll -o x86_64_chunks.bc
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-f80:128-n8:16:32:64-S128"
target triple = "x86_64-pc-linux-gnu"

declare i32 @llvm.vector.reduce.umax.v16i32(<16 x i32>)
declare i32 @llvm.ctpop.i32(i32)
declare i32 @llvm.cttz.i32(i32, i1)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)

; Q4_K headers of two columns. *scales_k, k = 2 half + high: scales of the nibbles `high` of words vector `half`, those of
; both columns in the 16-bit halves of a lane, of sub-block 4 half + high in lanes 0-7 and of the next but one in lanes 8-15.
; *tail_scales: of sub-blocks 0 and 1 instead. *minima, lane 2 s + c: dmin minimum - 8 d scale of sub-block s in column c.
; *d_one, *d_two: d.
define void @pair_headers(
    <4 x i32>* %one, <4 x i32>* %two, <16 x i32>* %scales0, <16 x i32>* %scales1, <16 x i32>* %scales2,
    <16 x i32>* %scales3, <16 x i32>* %tail_scales, <16 x float>* %minima, float* %d_one, float* %d_two) alwaysinline {
  %a = load <4 x i32>, <4 x i32>* %one
  %b = load <4 x i32>, <4 x i32>* %two
  %words = shufflevector <4 x i32> %a, <4 x i32> %b, <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %bytes = bitcast <8 x i32> %words to <32 x i8>
  %low = shufflevector <32 x i8> %bytes, <32 x i8> poison, <32 x i32> <i32 4, i32 5, i32 6, i32 7, i32 12, i32 13, i32 14, i32 15, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15, i32 20, i32 21, i32 22, i32 23, i32 28, i32 29, i32 30, i32 31, i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31>
  %lowi = bitcast <32 x i8> %low to <8 x i32>
  %lows = lshr <8 x i32> %lowi, <i32 0, i32 0, i32 0, i32 4, i32 0, i32 0, i32 0, i32 4>
  %lowm = and <8 x i32> %lows, <i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135>
  %top = shufflevector <32 x i8> %bytes, <32 x i8> zeroinitializer, <32 x i32> <i32 32, i32 33, i32 34, i32 35, i32 4, i32 5, i32 6, i32 7, i32 32, i32 33, i32 34, i32 35, i32 8, i32 9, i32 10, i32 11, i32 32, i32 33, i32 34, i32 35, i32 20, i32 21, i32 22, i32 23, i32 32, i32 33, i32 34, i32 35, i32 24, i32 25, i32 26, i32 27>
  %topi = bitcast <32 x i8> %top to <8 x i32>
  %tops = lshr <8 x i32> %topi, <i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2>
  %topm = and <8 x i32> %tops, <i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432>
  %fields = or <8 x i32> %lowm, %topm
  %fb = bitcast <8 x i32> %fields to <32 x i8>
  %w = zext <32 x i8> %fb to <32 x i16>
  %p0 = shufflevector <32 x i16> %w, <32 x i16> poison, <32 x i32> <i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18>
  %q0 = bitcast <32 x i16> %p0 to <16 x i32>
  store <16 x i32> %q0, <16 x i32>* %scales0
  %p1 = shufflevector <32 x i16> %w, <32 x i16> poison, <32 x i32> <i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 3, i32 19, i32 3, i32 19, i32 3, i32 19, i32 3, i32 19, i32 3, i32 19, i32 3, i32 19, i32 3, i32 19, i32 3, i32 19>
  %q1 = bitcast <32 x i16> %p1 to <16 x i32>
  store <16 x i32> %q1, <16 x i32>* %scales1
  %p2 = shufflevector <32 x i16> %w, <32 x i16> poison, <32 x i32> <i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22>
  %q2 = bitcast <32 x i16> %p2 to <16 x i32>
  store <16 x i32> %q2, <16 x i32>* %scales2
  %p3 = shufflevector <32 x i16> %w, <32 x i16> poison, <32 x i32> <i32 5, i32 21, i32 5, i32 21, i32 5, i32 21, i32 5, i32 21, i32 5, i32 21, i32 5, i32 21, i32 5, i32 21, i32 5, i32 21, i32 7, i32 23, i32 7, i32 23, i32 7, i32 23, i32 7, i32 23, i32 7, i32 23, i32 7, i32 23, i32 7, i32 23, i32 7, i32 23>
  %q3 = bitcast <32 x i16> %p3 to <16 x i32>
  store <16 x i32> %q3, <16 x i32>* %scales3
  %pt = shufflevector <32 x i16> %w, <32 x i16> poison, <32 x i32> <i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17, i32 1, i32 17>
  %qt = bitcast <32 x i16> %pt to <16 x i32>
  store <16 x i32> %qt, <16 x i32>* %tail_scales
  %sw = shufflevector <32 x i16> %w, <32 x i16> poison, <16 x i32> <i32 0, i32 16, i32 1, i32 17, i32 2, i32 18, i32 3, i32 19, i32 4, i32 20, i32 5, i32 21, i32 6, i32 22, i32 7, i32 23>
  %mw = shufflevector <32 x i16> %w, <32 x i16> poison, <16 x i32> <i32 8, i32 24, i32 9, i32 25, i32 10, i32 26, i32 11, i32 27, i32 12, i32 28, i32 13, i32 29, i32 14, i32 30, i32 15, i32 31>
  %si = zext <16 x i16> %sw to <16 x i32>
  %sf = sitofp <16 x i32> %si to <16 x float>
  %mi = zext <16 x i16> %mw to <16 x i32>
  %mf = sitofp <16 x i32> %mi to <16 x float>
  %first = shufflevector <8 x i32> %words, <8 x i32> poison, <2 x i32> <i32 0, i32 4>
  %halves = bitcast <2 x i32> %first to <4 x half>
  %ds = fpext <4 x half> %halves to <4 x float>
  %d = shufflevector <4 x float> %ds, <4 x float> poison, <16 x i32> <i32 0, i32 2, i32 0, i32 2, i32 0, i32 2, i32 0, i32 2, i32 0, i32 2, i32 0, i32 2, i32 0, i32 2, i32 0, i32 2>
  %dmin = shufflevector <4 x float> %ds, <4 x float> poison, <16 x i32> <i32 1, i32 3, i32 1, i32 3, i32 1, i32 3, i32 1, i32 3, i32 1, i32 3, i32 1, i32 3, i32 1, i32 3, i32 1, i32 3>
  %d8 = fmul <16 x float> %d, <float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0, float -8.0>
  %centre = fmul <16 x float> %d8, %sf
  %m = call <16 x float> @llvm.fma.v16f32(<16 x float> %dmin, <16 x float> %mf, <16 x float> %centre)
  store <16 x float> %m, <16 x float>* %minima
  %d0 = extractelement <4 x float> %ds, i32 0
  store float %d0, float* %d_one
  %d1 = extractelement <4 x float> %ds, i32 2
  store float %d1, float* %d_two
  ret void
}

; (nibble - 8) times its scale, of two columns in the 16-bit halves of a lane: *low_b of the low nibbles of byte b of the
; words *one and *two, *high_b of the high ones.
define void @scaled_weights(
    <16 x i32>* %one, <16 x i32>* %two, <16 x i32>* %low_scales, <16 x i32>* %high_scales, <16 x i32>* %low0,
    <16 x i32>* %low1, <16 x i32>* %low2, <16 x i32>* %low3, <16 x i32>* %high0, <16 x i32>* %high1, <16 x i32>* %high2,
    <16 x i32>* %high3) alwaysinline {
  %a = load <16 x i32>, <16 x i32>* %one
  %b = load <16 x i32>, <16 x i32>* %two
  %a0 = and <16 x i32> %a, <i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535, i32 65535>
  %b0 = shl <16 x i32> %b, <i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16>
  %w0 = or <16 x i32> %a0, %b0
  %a1 = lshr <16 x i32> %a, <i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16, i32 16>
  %b1 = and <16 x i32> %b, <i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536, i32 -65536>
  %w2 = or <16 x i32> %a1, %b1
  %w1 = lshr <16 x i32> %w0, <i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8>
  %w3 = lshr <16 x i32> %w2, <i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8, i32 8>
  %lows = load <16 x i32>, <16 x i32>* %low_scales
  %loww = bitcast <16 x i32> %lows to <32 x i16>
  %low8 = shl <32 x i16> %loww, <i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3>
  %highs = load <16 x i32>, <16 x i32>* %high_scales
  %highw = bitcast <16 x i32> %highs to <32 x i16>
  %high8 = shl <32 x i16> %highw, <i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3, i16 3>
  %lown0 = and <16 x i32> %w0, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %lown0w = bitcast <16 x i32> %lown0 to <32 x i16>
  %lown0p = mul <32 x i16> %lown0w, %loww
  %lown0c = sub <32 x i16> %lown0p, %low8
  %lown0i = bitcast <32 x i16> %lown0c to <16 x i32>
  store <16 x i32> %lown0i, <16 x i32>* %low0
  %lown1 = and <16 x i32> %w1, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %lown1w = bitcast <16 x i32> %lown1 to <32 x i16>
  %lown1p = mul <32 x i16> %lown1w, %loww
  %lown1c = sub <32 x i16> %lown1p, %low8
  %lown1i = bitcast <32 x i16> %lown1c to <16 x i32>
  store <16 x i32> %lown1i, <16 x i32>* %low1
  %lown2 = and <16 x i32> %w2, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %lown2w = bitcast <16 x i32> %lown2 to <32 x i16>
  %lown2p = mul <32 x i16> %lown2w, %loww
  %lown2c = sub <32 x i16> %lown2p, %low8
  %lown2i = bitcast <32 x i16> %lown2c to <16 x i32>
  store <16 x i32> %lown2i, <16 x i32>* %low2
  %lown3 = and <16 x i32> %w3, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %lown3w = bitcast <16 x i32> %lown3 to <32 x i16>
  %lown3p = mul <32 x i16> %lown3w, %loww
  %lown3c = sub <32 x i16> %lown3p, %low8
  %lown3i = bitcast <32 x i16> %lown3c to <16 x i32>
  store <16 x i32> %lown3i, <16 x i32>* %low3
  %x0 = lshr <16 x i32> %w0, <i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4>
  %highn0 = and <16 x i32> %x0, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %highn0w = bitcast <16 x i32> %highn0 to <32 x i16>
  %highn0p = mul <32 x i16> %highn0w, %highw
  %highn0c = sub <32 x i16> %highn0p, %high8
  %highn0i = bitcast <32 x i16> %highn0c to <16 x i32>
  store <16 x i32> %highn0i, <16 x i32>* %high0
  %x1 = lshr <16 x i32> %w1, <i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4>
  %highn1 = and <16 x i32> %x1, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %highn1w = bitcast <16 x i32> %highn1 to <32 x i16>
  %highn1p = mul <32 x i16> %highn1w, %highw
  %highn1c = sub <32 x i16> %highn1p, %high8
  %highn1i = bitcast <32 x i16> %highn1c to <16 x i32>
  store <16 x i32> %highn1i, <16 x i32>* %high1
  %x2 = lshr <16 x i32> %w2, <i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4>
  %highn2 = and <16 x i32> %x2, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %highn2w = bitcast <16 x i32> %highn2 to <32 x i16>
  %highn2p = mul <32 x i16> %highn2w, %highw
  %highn2c = sub <32 x i16> %highn2p, %high8
  %highn2i = bitcast <32 x i16> %highn2c to <16 x i32>
  store <16 x i32> %highn2i, <16 x i32>* %high2
  %x3 = lshr <16 x i32> %w3, <i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4, i32 4>
  %highn3 = and <16 x i32> %x3, <i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055, i32 983055>
  %highn3w = bitcast <16 x i32> %highn3 to <32 x i16>
  %highn3p = mul <32 x i16> %highn3w, %highw
  %highn3c = sub <32 x i16> %highn3p, %high8
  %highn3i = bitcast <32 x i16> %highn3c to <16 x i32>
  store <16 x i32> %highn3i, <16 x i32>* %high3
  ret void
}

; *out = the largest magnitude in *v. Compared as integers: NaN is above infinity, and stays.
define void @largest_lane(<16 x float>* %v, float* %out) alwaysinline {
  %x = load <16 x float>, <16 x float>* %v
  %i = bitcast <16 x float> %x to <16 x i32>
  %a = and <16 x i32> %i, <i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647>
  %m = call i32 @llvm.vector.reduce.umax.v16i32(<16 x i32> %a)
  %r = bitcast i32 %m to float
  store float %r, float* %out
  ret void
}

; *a and *b times *inverse, rounded to 16 bits: lane i of *out has columns 2 i and 2 i + 1 of the 32. Adding 1.5 * 2^23 leaves
; the integer in the low bits of the sum.
define void @round_pairs(<16 x float>* %a, <16 x float>* %b, <16 x float>* %inverse, <16 x i32>* %out) alwaysinline {
  %x = load <16 x float>, <16 x float>* %a
  %y = load <16 x float>, <16 x float>* %b
  %s = load <16 x float>, <16 x float>* %inverse
  %xr = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %s, <16 x float> <float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0>)
  %yr = call <16 x float> @llvm.fma.v16f32(<16 x float> %y, <16 x float> %s, <16 x float> <float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0>)
  %xw = bitcast <16 x float> %xr to <32 x i16>
  %yw = bitcast <16 x float> %yr to <32 x i16>
  %r = shufflevector <32 x i16> %xw, <32 x i16> %yw, <32 x i32> <i32 0, i32 2, i32 4, i32 6, i32 8, i32 10, i32 12, i32 14, i32 16, i32 18, i32 20, i32 22, i32 24, i32 26, i32 28, i32 30, i32 32, i32 34, i32 36, i32 38, i32 40, i32 42, i32 44, i32 46, i32 48, i32 50, i32 52, i32 54, i32 56, i32 58, i32 60, i32 62>
  %i = bitcast <32 x i16> %r to <16 x i32>
  store <16 x i32> %i, <16 x i32>* %out
  ret void
}

; *out = the 32 bits at *address in every lane.
define void @broadcast32(i64* %address, <16 x i32>* %out) alwaysinline {
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to i32*
  %x = load i32, i32* %p, align 4
  %v = insertelement <16 x i32> poison, i32 %x, i32 0
  %r = shufflevector <16 x i32> %v, <16 x i32> poison, <16 x i32> zeroinitializer
  store <16 x i32> %r, <16 x i32>* %out
  ret void
}

; *out = the two floats at *address in every two lanes.
define void @broadcast_pair(i64* %address, <16 x float>* %out) alwaysinline {
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to double*
  %x = load double, double* %p, align 4
  %v = insertelement <8 x double> poison, double %x, i32 0
  %r = shufflevector <8 x double> %v, <8 x double> poison, <8 x i32> zeroinitializer
  %f = bitcast <8 x double> %r to <16 x float>
  store <16 x float> %f, <16 x float>* %out
  ret void
}

; Bit i of *mask: word i of *a and *b, one after the other, is not zero.
define void @nonzero_words(<16 x i32>* %a, <16 x i32>* %b, i32* %mask) alwaysinline {
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %words = shufflevector <16 x i32> %x, <16 x i32> %y, <32 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15, i32 16, i32 17, i32 18, i32 19, i32 20, i32 21, i32 22, i32 23, i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31>
  %set = icmp ne <32 x i32> %words, zeroinitializer
  %bits = bitcast <32 x i1> %set to i32
  store i32 %bits, i32* %mask
  ret void
}

; *count = number of bits of *mask that are set.
define void @count_bits(i32* %mask, i32* %count) alwaysinline {
  %m = load i32, i32* %mask
  %n = call i32 @llvm.ctpop.i32(i32 %m)
  store i32 %n, i32* %count
  ret void
}

; *offset = 4 times the place of the lowest bit of *mask that is set, and that bit is cleared.
define void @take_lowest(i32* %mask, i64* %offset) alwaysinline {
  %m = load i32, i32* %mask
  %place = call i32 @llvm.cttz.i32(i32 %m, i1 true)
  %four = shl i32 %place, 2
  %wide = zext i32 %four to i64
  store i64 %wide, i64* %offset
  %less = add i32 %m, -1
  %rest = and i32 %m, %less
  store i32 %rest, i32* %mask
  ret void
}
