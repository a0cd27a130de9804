; What Taichi cannot say of 16-bit products on x86-64 CPUs, apart from the products themselves (x86_64_vnni.ll, x86_64_avx2.ll).
; Every function is inlined into its caller.
; Assembled by: llvm-as-15 --opaque-pointers=0 x86_64_16_bits.ll -o x86_64_16_bits.bc
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-f80:128-n8:16:32:64-S128"
target triple = "x86_64-pc-linux-gnu"

declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)

; Bytes of four vectors side by side in a lane: *out_k, 32-bit lane 4 m + i: byte 16 m + 4 k + i of *a, *b, *c and *d.
define void @four_columns(
    <16 x i32>* %a, <16 x i32>* %b, <16 x i32>* %c, <16 x i32>* %d,
    <16 x i32>* %out0, <16 x i32>* %out1, <16 x i32>* %out2, <16 x i32>* %out3) alwaysinline {
  %ai = load <16 x i32>, <16 x i32>* %a
  %ab = bitcast <16 x i32> %ai to <64 x i8>
  %bi = load <16 x i32>, <16 x i32>* %b
  %bb = bitcast <16 x i32> %bi to <64 x i8>
  %ci = load <16 x i32>, <16 x i32>* %c
  %cb = bitcast <16 x i32> %ci to <64 x i8>
  %di = load <16 x i32>, <16 x i32>* %d
  %db = bitcast <16 x i32> %di to <64 x i8>
  %ab0 = shufflevector <64 x i8> %ab, <64 x i8> %bb, <64 x i32> <i32 0, i32 64, i32 1, i32 65, i32 2, i32 66, i32 3, i32 67, i32 4, i32 68, i32 5, i32 69, i32 6, i32 70, i32 7, i32 71, i32 16, i32 80, i32 17, i32 81, i32 18, i32 82, i32 19, i32 83, i32 20, i32 84, i32 21, i32 85, i32 22, i32 86, i32 23, i32 87, i32 32, i32 96, i32 33, i32 97, i32 34, i32 98, i32 35, i32 99, i32 36, i32 100, i32 37, i32 101, i32 38, i32 102, i32 39, i32 103, i32 48, i32 112, i32 49, i32 113, i32 50, i32 114, i32 51, i32 115, i32 52, i32 116, i32 53, i32 117, i32 54, i32 118, i32 55, i32 119>
  %ab1 = shufflevector <64 x i8> %ab, <64 x i8> %bb, <64 x i32> <i32 8, i32 72, i32 9, i32 73, i32 10, i32 74, i32 11, i32 75, i32 12, i32 76, i32 13, i32 77, i32 14, i32 78, i32 15, i32 79, i32 24, i32 88, i32 25, i32 89, i32 26, i32 90, i32 27, i32 91, i32 28, i32 92, i32 29, i32 93, i32 30, i32 94, i32 31, i32 95, i32 40, i32 104, i32 41, i32 105, i32 42, i32 106, i32 43, i32 107, i32 44, i32 108, i32 45, i32 109, i32 46, i32 110, i32 47, i32 111, i32 56, i32 120, i32 57, i32 121, i32 58, i32 122, i32 59, i32 123, i32 60, i32 124, i32 61, i32 125, i32 62, i32 126, i32 63, i32 127>
  %cd0 = shufflevector <64 x i8> %cb, <64 x i8> %db, <64 x i32> <i32 0, i32 64, i32 1, i32 65, i32 2, i32 66, i32 3, i32 67, i32 4, i32 68, i32 5, i32 69, i32 6, i32 70, i32 7, i32 71, i32 16, i32 80, i32 17, i32 81, i32 18, i32 82, i32 19, i32 83, i32 20, i32 84, i32 21, i32 85, i32 22, i32 86, i32 23, i32 87, i32 32, i32 96, i32 33, i32 97, i32 34, i32 98, i32 35, i32 99, i32 36, i32 100, i32 37, i32 101, i32 38, i32 102, i32 39, i32 103, i32 48, i32 112, i32 49, i32 113, i32 50, i32 114, i32 51, i32 115, i32 52, i32 116, i32 53, i32 117, i32 54, i32 118, i32 55, i32 119>
  %cd1 = shufflevector <64 x i8> %cb, <64 x i8> %db, <64 x i32> <i32 8, i32 72, i32 9, i32 73, i32 10, i32 74, i32 11, i32 75, i32 12, i32 76, i32 13, i32 77, i32 14, i32 78, i32 15, i32 79, i32 24, i32 88, i32 25, i32 89, i32 26, i32 90, i32 27, i32 91, i32 28, i32 92, i32 29, i32 93, i32 30, i32 94, i32 31, i32 95, i32 40, i32 104, i32 41, i32 105, i32 42, i32 106, i32 43, i32 107, i32 44, i32 108, i32 45, i32 109, i32 46, i32 110, i32 47, i32 111, i32 56, i32 120, i32 57, i32 121, i32 58, i32 122, i32 59, i32 123, i32 60, i32 124, i32 61, i32 125, i32 62, i32 126, i32 63, i32 127>
  %ab0w = bitcast <64 x i8> %ab0 to <32 x i16>
  %ab1w = bitcast <64 x i8> %ab1 to <32 x i16>
  %cd0w = bitcast <64 x i8> %cd0 to <32 x i16>
  %cd1w = bitcast <64 x i8> %cd1 to <32 x i16>
  %r0 = shufflevector <32 x i16> %ab0w, <32 x i16> %cd0w, <32 x i32> <i32 0, i32 32, i32 1, i32 33, i32 2, i32 34, i32 3, i32 35, i32 8, i32 40, i32 9, i32 41, i32 10, i32 42, i32 11, i32 43, i32 16, i32 48, i32 17, i32 49, i32 18, i32 50, i32 19, i32 51, i32 24, i32 56, i32 25, i32 57, i32 26, i32 58, i32 27, i32 59>
  %i0 = bitcast <32 x i16> %r0 to <16 x i32>
  store <16 x i32> %i0, <16 x i32>* %out0
  %r1 = shufflevector <32 x i16> %ab0w, <32 x i16> %cd0w, <32 x i32> <i32 4, i32 36, i32 5, i32 37, i32 6, i32 38, i32 7, i32 39, i32 12, i32 44, i32 13, i32 45, i32 14, i32 46, i32 15, i32 47, i32 20, i32 52, i32 21, i32 53, i32 22, i32 54, i32 23, i32 55, i32 28, i32 60, i32 29, i32 61, i32 30, i32 62, i32 31, i32 63>
  %i1 = bitcast <32 x i16> %r1 to <16 x i32>
  store <16 x i32> %i1, <16 x i32>* %out1
  %r2 = shufflevector <32 x i16> %ab1w, <32 x i16> %cd1w, <32 x i32> <i32 0, i32 32, i32 1, i32 33, i32 2, i32 34, i32 3, i32 35, i32 8, i32 40, i32 9, i32 41, i32 10, i32 42, i32 11, i32 43, i32 16, i32 48, i32 17, i32 49, i32 18, i32 50, i32 19, i32 51, i32 24, i32 56, i32 25, i32 57, i32 26, i32 58, i32 27, i32 59>
  %i2 = bitcast <32 x i16> %r2 to <16 x i32>
  store <16 x i32> %i2, <16 x i32>* %out2
  %r3 = shufflevector <32 x i16> %ab1w, <32 x i16> %cd1w, <32 x i32> <i32 4, i32 36, i32 5, i32 37, i32 6, i32 38, i32 7, i32 39, i32 12, i32 44, i32 13, i32 45, i32 14, i32 46, i32 15, i32 47, i32 20, i32 52, i32 21, i32 53, i32 22, i32 54, i32 23, i32 55, i32 28, i32 60, i32 29, i32 61, i32 30, i32 62, i32 31, i32 63>
  %i3 = bitcast <32 x i16> %r3 to <16 x i32>
  store <16 x i32> %i3, <16 x i32>* %out3
  ret void
}

; 16-bit numbers, those of two columns in the halves of a lane of *a and of the next two in *b, as 256 high + low: the bytes
; high and low of the four columns, signed, in a lane of *high and *low. The numbers are below 32640.
define void @split_bytes(<16 x i32>* %a, <16 x i32>* %b, <16 x i32>* %high, <16 x i32>* %low) alwaysinline {
  %ai = load <16 x i32>, <16 x i32>* %a
  %aw = bitcast <16 x i32> %ai to <32 x i16>
  %ar = add <32 x i16> %aw, <i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128>
  %ab = bitcast <32 x i16> %aw to <64 x i8>
  %ah = bitcast <32 x i16> %ar to <64 x i8>
  %bi = load <16 x i32>, <16 x i32>* %b
  %bw = bitcast <16 x i32> %bi to <32 x i16>
  %br = add <32 x i16> %bw, <i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128, i16 128>
  %bb = bitcast <32 x i16> %bw to <64 x i8>
  %bh = bitcast <32 x i16> %br to <64 x i8>
  %l = shufflevector <64 x i8> %ab, <64 x i8> %bb, <64 x i32> <i32 0, i32 2, i32 64, i32 66, i32 4, i32 6, i32 68, i32 70, i32 8, i32 10, i32 72, i32 74, i32 12, i32 14, i32 76, i32 78, i32 16, i32 18, i32 80, i32 82, i32 20, i32 22, i32 84, i32 86, i32 24, i32 26, i32 88, i32 90, i32 28, i32 30, i32 92, i32 94, i32 32, i32 34, i32 96, i32 98, i32 36, i32 38, i32 100, i32 102, i32 40, i32 42, i32 104, i32 106, i32 44, i32 46, i32 108, i32 110, i32 48, i32 50, i32 112, i32 114, i32 52, i32 54, i32 116, i32 118, i32 56, i32 58, i32 120, i32 122, i32 60, i32 62, i32 124, i32 126>
  %h = shufflevector <64 x i8> %ah, <64 x i8> %bh, <64 x i32> <i32 1, i32 3, i32 65, i32 67, i32 5, i32 7, i32 69, i32 71, i32 9, i32 11, i32 73, i32 75, i32 13, i32 15, i32 77, i32 79, i32 17, i32 19, i32 81, i32 83, i32 21, i32 23, i32 85, i32 87, i32 25, i32 27, i32 89, i32 91, i32 29, i32 31, i32 93, i32 95, i32 33, i32 35, i32 97, i32 99, i32 37, i32 39, i32 101, i32 103, i32 41, i32 43, i32 105, i32 107, i32 45, i32 47, i32 109, i32 111, i32 49, i32 51, i32 113, i32 115, i32 53, i32 55, i32 117, i32 119, i32 57, i32 59, i32 121, i32 123, i32 61, i32 63, i32 125, i32 127>
  %li = bitcast <64 x i8> %l to <16 x i32>
  %hi = bitcast <64 x i8> %h to <16 x i32>
  store <16 x i32> %li, <16 x i32>* %low
  store <16 x i32> %hi, <16 x i32>* %high
  ret void
}

; *out = the 64 bytes at *address, wherever it is.
define void @load64(i64* %address, <16 x i32>* %out) alwaysinline {
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to <16 x i32>*
  %v = load <16 x i32>, <16 x i32>* %p, align 4
  store <16 x i32> %v, <16 x i32>* %out
  ret void
}

; *v to the 64 bytes at *address.
define void @store64(i64* %address, <16 x i32>* %v) alwaysinline {
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to <16 x i32>*
  %x = load <16 x i32>, <16 x i32>* %v
  store <16 x i32> %x, <16 x i32>* %p, align 4
  ret void
}

; *v to the 8 bytes at *address.
define void @store_offset(i64* %address, i64* %v) alwaysinline {
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to i64*
  %x = load i64, i64* %v
  store i64 %x, i64* %p, align 8
  ret void
}

; *out = the 64 bytes at *base + the offset that stands at *place.
define void @load_headers(i64* %base, i64* %place, <16 x i32>* %out) alwaysinline {
  %b = load i64, i64* %base
  %a = load i64, i64* %place
  %p = inttoptr i64 %a to i64*
  %o = load i64, i64* %p
  %at = add i64 %b, %o
  %q = inttoptr i64 %at to <16 x i32>*
  %v = load <16 x i32>, <16 x i32>* %q, align 16
  store <16 x i32> %v, <16 x i32>* %out
  ret void
}

; *out = the 64 bytes at *base + 8 times the offset that stands at *place.
define void @load_quants(i64* %base, i64* %place, <16 x i32>* %out) alwaysinline {
  %b = load i64, i64* %base
  %a = load i64, i64* %place
  %p = inttoptr i64 %a to i64*
  %o = load i64, i64* %p
  %o8 = shl i64 %o, 3
  %at = add i64 %b, %o8
  %q = inttoptr i64 %at to <16 x i32>*
  %v = load <16 x i32>, <16 x i32>* %q, align 64
  store <16 x i32> %v, <16 x i32>* %out
  ret void
}

; The first words of four Q4_K headers in *a and of four in *b, 16 halves, as floats: d and dmin, d and dmin, ...
define void @first_halves(<16 x i32>* %a, <16 x i32>* %b, <16 x float>* %out) alwaysinline {
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %w = shufflevector <16 x i32> %x, <16 x i32> %y, <8 x i32> <i32 0, i32 4, i32 8, i32 12, i32 16, i32 20, i32 24, i32 28>
  %h = bitcast <8 x i32> %w to <16 x half>
  %f = fpext <16 x half> %h to <16 x float>
  store <16 x float> %f, <16 x float>* %out
  ret void
}

; *largest (not negative) becomes the larger of itself and the magnitude of *v, in every lane. Compared as integers: NaN
; is above infinity, and stays.
define void @widen(<16 x float>* %largest, <16 x float>* %v) alwaysinline {
  %m = load <16 x float>, <16 x float>* %largest
  %w = load <16 x float>, <16 x float>* %v
  %mi = bitcast <16 x float> %m to <16 x i32>
  %wi = bitcast <16 x float> %w to <16 x i32>
  %a = and <16 x i32> %wi, <i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647, i32 2147483647>
  %c = icmp ugt <16 x i32> %a, %mi
  %b = select <16 x i1> %c, <16 x i32> %a, <16 x i32> %mi
  %r = bitcast <16 x i32> %b to <16 x float>
  store <16 x float> %r, <16 x float>* %largest
  ret void
}

; *v of two columns (lanes 0-7, 8-15), of each four times d, dmin, times *steps, rounded to 16 bits. In lanes 4 b .. 4 b + 3:
; *d, the two columns' values of d of band b in the halves of a lane; *dmin likewise. *d_rest and *dmin_rest: what rounding
; left over, in 32767ths. Adding 1.5 * 2^23 leaves the integer in the low bits of the sum.
define void @round_inputs(
    <16 x float>* %v, <16 x float>* %steps, <16 x i32>* %d, <16 x i32>* %dmin, <16 x i32>* %d_rest, <16 x i32>* %dmin_rest)
    alwaysinline {
  %x = load <16 x float>, <16 x float>* %v
  %s = load <16 x float>, <16 x float>* %steps
  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %s, <16 x float> <float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0>)
  %n = fsub <16 x float> <float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0>, %r
  %e = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %s, <16 x float> %n)
  %q = call <16 x float> @llvm.fma.v16f32(<16 x float> %e, <16 x float> <float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0, float 32767.0>, <16 x float> <float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0, float 12582912.0>)
  %rw = bitcast <16 x float> %r to <32 x i16>
  %qw = bitcast <16 x float> %q to <32 x i16>
  %d0 = shufflevector <32 x i16> %rw, <32 x i16> poison, <32 x i32> <i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 8, i32 24, i32 8, i32 24, i32 8, i32 24, i32 8, i32 24, i32 12, i32 28, i32 12, i32 28, i32 12, i32 28, i32 12, i32 28>
  %d0i = bitcast <32 x i16> %d0 to <16 x i32>
  store <16 x i32> %d0i, <16 x i32>* %d
  %m0 = shufflevector <32 x i16> %rw, <32 x i16> poison, <32 x i32> <i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 10, i32 26, i32 10, i32 26, i32 10, i32 26, i32 10, i32 26, i32 14, i32 30, i32 14, i32 30, i32 14, i32 30, i32 14, i32 30>
  %m0i = bitcast <32 x i16> %m0 to <16 x i32>
  store <16 x i32> %m0i, <16 x i32>* %dmin
  %d1 = shufflevector <32 x i16> %qw, <32 x i16> poison, <32 x i32> <i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 0, i32 16, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 4, i32 20, i32 8, i32 24, i32 8, i32 24, i32 8, i32 24, i32 8, i32 24, i32 12, i32 28, i32 12, i32 28, i32 12, i32 28, i32 12, i32 28>
  %d1i = bitcast <32 x i16> %d1 to <16 x i32>
  store <16 x i32> %d1i, <16 x i32>* %d_rest
  %m1 = shufflevector <32 x i16> %qw, <32 x i16> poison, <32 x i32> <i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 2, i32 18, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 6, i32 22, i32 10, i32 26, i32 10, i32 26, i32 10, i32 26, i32 10, i32 26, i32 14, i32 30, i32 14, i32 30, i32 14, i32 30, i32 14, i32 30>
  %m1i = bitcast <32 x i16> %m1 to <16 x i32>
  store <16 x i32> %m1i, <16 x i32>* %dmin_rest
  ret void
}

; Four Q4_K headers -> in each 128 bits the 6-bit fields as bytes: eight scales, eight minima.
define void @fields(<16 x i32>* %headers, <16 x i32>* %out) alwaysinline {
  %h = load <16 x i32>, <16 x i32>* %headers
  %b = bitcast <16 x i32> %h to <64 x i8>
  %low = shufflevector <64 x i8> %b, <64 x i8> poison, <64 x i32> <i32 4, i32 5, i32 6, i32 7, i32 12, i32 13, i32 14, i32 15, i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15, i32 20, i32 21, i32 22, i32 23, i32 28, i32 29, i32 30, i32 31, i32 24, i32 25, i32 26, i32 27, i32 28, i32 29, i32 30, i32 31, i32 36, i32 37, i32 38, i32 39, i32 44, i32 45, i32 46, i32 47, i32 40, i32 41, i32 42, i32 43, i32 44, i32 45, i32 46, i32 47, i32 52, i32 53, i32 54, i32 55, i32 60, i32 61, i32 62, i32 63, i32 56, i32 57, i32 58, i32 59, i32 60, i32 61, i32 62, i32 63>
  %lowi = bitcast <64 x i8> %low to <16 x i32>
  %lows = lshr <16 x i32> %lowi, <i32 0, i32 0, i32 0, i32 4, i32 0, i32 0, i32 0, i32 4, i32 0, i32 0, i32 0, i32 4, i32 0, i32 0, i32 0, i32 4>
  %lowm = and <16 x i32> %lows, <i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135, i32 1061109567, i32 252645135>
  %top = shufflevector <64 x i8> %b, <64 x i8> zeroinitializer, <64 x i32> <i32 64, i32 65, i32 66, i32 67, i32 4, i32 5, i32 6, i32 7, i32 64, i32 65, i32 66, i32 67, i32 8, i32 9, i32 10, i32 11, i32 80, i32 81, i32 82, i32 83, i32 20, i32 21, i32 22, i32 23, i32 80, i32 81, i32 82, i32 83, i32 24, i32 25, i32 26, i32 27, i32 96, i32 97, i32 98, i32 99, i32 36, i32 37, i32 38, i32 39, i32 96, i32 97, i32 98, i32 99, i32 40, i32 41, i32 42, i32 43, i32 112, i32 113, i32 114, i32 115, i32 52, i32 53, i32 54, i32 55, i32 112, i32 113, i32 114, i32 115, i32 56, i32 57, i32 58, i32 59>
  %topi = bitcast <64 x i8> %top to <16 x i32>
  %tops = lshr <16 x i32> %topi, <i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2, i32 2>
  %topm = and <16 x i32> %tops, <i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432, i32 0, i32 808464432>
  %r = or <16 x i32> %lowm, %topm
  store <16 x i32> %r, <16 x i32>* %out
  ret void
}

; Bytes of *a and *b side by side as 16-bit halves of a lane: of each 128 bits the bytes 0-3, 4-7, 8-11 and 12-15.
define void @interleave(
    <16 x i32>* %a, <16 x i32>* %b, <16 x i32>* %out0, <16 x i32>* %out1, <16 x i32>* %out2, <16 x i32>* %out3) alwaysinline {
  %x = load <16 x i32>, <16 x i32>* %a
  %y = load <16 x i32>, <16 x i32>* %b
  %xb = bitcast <16 x i32> %x to <64 x i8>
  %yb = bitcast <16 x i32> %y to <64 x i8>
  %low = shufflevector <64 x i8> %xb, <64 x i8> %yb, <64 x i32> <i32 0, i32 64, i32 1, i32 65, i32 2, i32 66, i32 3, i32 67, i32 4, i32 68, i32 5, i32 69, i32 6, i32 70, i32 7, i32 71, i32 16, i32 80, i32 17, i32 81, i32 18, i32 82, i32 19, i32 83, i32 20, i32 84, i32 21, i32 85, i32 22, i32 86, i32 23, i32 87, i32 32, i32 96, i32 33, i32 97, i32 34, i32 98, i32 35, i32 99, i32 36, i32 100, i32 37, i32 101, i32 38, i32 102, i32 39, i32 103, i32 48, i32 112, i32 49, i32 113, i32 50, i32 114, i32 51, i32 115, i32 52, i32 116, i32 53, i32 117, i32 54, i32 118, i32 55, i32 119>
  %high = shufflevector <64 x i8> %xb, <64 x i8> %yb, <64 x i32> <i32 8, i32 72, i32 9, i32 73, i32 10, i32 74, i32 11, i32 75, i32 12, i32 76, i32 13, i32 77, i32 14, i32 78, i32 15, i32 79, i32 24, i32 88, i32 25, i32 89, i32 26, i32 90, i32 27, i32 91, i32 28, i32 92, i32 29, i32 93, i32 30, i32 94, i32 31, i32 95, i32 40, i32 104, i32 41, i32 105, i32 42, i32 106, i32 43, i32 107, i32 44, i32 108, i32 45, i32 109, i32 46, i32 110, i32 47, i32 111, i32 56, i32 120, i32 57, i32 121, i32 58, i32 122, i32 59, i32 123, i32 60, i32 124, i32 61, i32 125, i32 62, i32 126, i32 63, i32 127>
  %r0 = shufflevector <64 x i8> %low, <64 x i8> zeroinitializer, <64 x i32> <i32 0, i32 64, i32 1, i32 65, i32 2, i32 66, i32 3, i32 67, i32 4, i32 68, i32 5, i32 69, i32 6, i32 70, i32 7, i32 71, i32 16, i32 80, i32 17, i32 81, i32 18, i32 82, i32 19, i32 83, i32 20, i32 84, i32 21, i32 85, i32 22, i32 86, i32 23, i32 87, i32 32, i32 96, i32 33, i32 97, i32 34, i32 98, i32 35, i32 99, i32 36, i32 100, i32 37, i32 101, i32 38, i32 102, i32 39, i32 103, i32 48, i32 112, i32 49, i32 113, i32 50, i32 114, i32 51, i32 115, i32 52, i32 116, i32 53, i32 117, i32 54, i32 118, i32 55, i32 119>
  %r1 = shufflevector <64 x i8> %low, <64 x i8> zeroinitializer, <64 x i32> <i32 8, i32 72, i32 9, i32 73, i32 10, i32 74, i32 11, i32 75, i32 12, i32 76, i32 13, i32 77, i32 14, i32 78, i32 15, i32 79, i32 24, i32 88, i32 25, i32 89, i32 26, i32 90, i32 27, i32 91, i32 28, i32 92, i32 29, i32 93, i32 30, i32 94, i32 31, i32 95, i32 40, i32 104, i32 41, i32 105, i32 42, i32 106, i32 43, i32 107, i32 44, i32 108, i32 45, i32 109, i32 46, i32 110, i32 47, i32 111, i32 56, i32 120, i32 57, i32 121, i32 58, i32 122, i32 59, i32 123, i32 60, i32 124, i32 61, i32 125, i32 62, i32 126, i32 63, i32 127>
  %r2 = shufflevector <64 x i8> %high, <64 x i8> zeroinitializer, <64 x i32> <i32 0, i32 64, i32 1, i32 65, i32 2, i32 66, i32 3, i32 67, i32 4, i32 68, i32 5, i32 69, i32 6, i32 70, i32 7, i32 71, i32 16, i32 80, i32 17, i32 81, i32 18, i32 82, i32 19, i32 83, i32 20, i32 84, i32 21, i32 85, i32 22, i32 86, i32 23, i32 87, i32 32, i32 96, i32 33, i32 97, i32 34, i32 98, i32 35, i32 99, i32 36, i32 100, i32 37, i32 101, i32 38, i32 102, i32 39, i32 103, i32 48, i32 112, i32 49, i32 113, i32 50, i32 114, i32 51, i32 115, i32 52, i32 116, i32 53, i32 117, i32 54, i32 118, i32 55, i32 119>
  %r3 = shufflevector <64 x i8> %high, <64 x i8> zeroinitializer, <64 x i32> <i32 8, i32 72, i32 9, i32 73, i32 10, i32 74, i32 11, i32 75, i32 12, i32 76, i32 13, i32 77, i32 14, i32 78, i32 15, i32 79, i32 24, i32 88, i32 25, i32 89, i32 26, i32 90, i32 27, i32 91, i32 28, i32 92, i32 29, i32 93, i32 30, i32 94, i32 31, i32 95, i32 40, i32 104, i32 41, i32 105, i32 42, i32 106, i32 43, i32 107, i32 44, i32 108, i32 45, i32 109, i32 46, i32 110, i32 47, i32 111, i32 56, i32 120, i32 57, i32 121, i32 58, i32 122, i32 59, i32 123, i32 60, i32 124, i32 61, i32 125, i32 62, i32 126, i32 63, i32 127>
  %i0 = bitcast <64 x i8> %r0 to <16 x i32>
  store <16 x i32> %i0, <16 x i32>* %out0
  %i1 = bitcast <64 x i8> %r1 to <16 x i32>
  store <16 x i32> %i1, <16 x i32>* %out1
  %i2 = bitcast <64 x i8> %r2 to <16 x i32>
  store <16 x i32> %i2, <16 x i32>* %out2
  %i3 = bitcast <64 x i8> %r3 to <16 x i32>
  store <16 x i32> %i3, <16 x i32>* %out3
  ret void
}

; *out = the bits of *v.
define void @bits_of(<16 x float>* %v, <16 x i32>* %out) alwaysinline {
  %x = load <16 x float>, <16 x float>* %v
  %r = bitcast <16 x float> %x to <16 x i32>
  store <16 x i32> %r, <16 x i32>* %out
  ret void
}

; *out = the float whose bits are *v.
define void @float_of(<16 x i32>* %v, <16 x float>* %out) alwaysinline {
  %x = load <16 x i32>, <16 x i32>* %v
  %r = bitcast <16 x i32> %x to <16 x float>
  store <16 x float> %r, <16 x float>* %out
  ret void
}

; In a loop: LLVM does not unroll it. It would hoist the loads of four turns to the first, and spill the sums for them.
define void @not_unrolled() alwaysinline convergent {
  call void asm sideeffect "", ""() convergent
  ret void
}
