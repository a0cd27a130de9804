; What Taichi cannot say on x86-64 Linux: fused multiply-add, giving way while waiting. Every function is inlined
; into its caller.
; Assembled by: llvm-as-15 --opaque-pointers=0 x86_64.ll -o x86_64.bc   (LLVM 15 is what Taichi 1.7.4 links)
target datalayout = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-f80:128-n8:16:32:64-S128"
target triple = "x86_64-pc-linux-gnu"

declare void @llvm.x86.sse2.pause()
declare i64 @llvm.readcyclecounter()
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare <8 x float> @llvm.fma.v8f32(<8 x float>, <8 x float>, <8 x float>)

; Addresses, *first and seven more, *step bytes apart, as 64-bit integers at *address.
define void @write_run(i64* %address, i64* %first, i64* %step) alwaysinline {
  %a = load i64, i64* %address
  %p = inttoptr i64 %a to <8 x i64>*
  %f = load i64, i64* %first
  %s = insertelement <8 x i64> poison, i64 %f, i32 0
  %v = shufflevector <8 x i64> %s, <8 x i64> poison, <8 x i32> zeroinitializer
  %d = load i64, i64* %step
  %d0 = insertelement <8 x i64> poison, i64 %d, i32 0
  %ds = shufflevector <8 x i64> %d0, <8 x i64> poison, <8 x i32> zeroinitializer
  %o = mul <8 x i64> %ds, <i64 0, i64 1, i64 2, i64 3, i64 4, i64 5, i64 6, i64 7>
  %r = add <8 x i64> %v, %o
  store <8 x i64> %r, <8 x i64>* %p, align 8
  ret void
}

; *sum += *a * *b, rounded once.
define void @fma16(<16 x float>* %sum, <16 x float>* %a, <16 x float>* %b) alwaysinline {
  %s = load <16 x float>, <16 x float>* %sum
  %x = load <16 x float>, <16 x float>* %a
  %y = load <16 x float>, <16 x float>* %b
  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %y, <16 x float> %s)
  store <16 x float> %r, <16 x float>* %sum
  ret void
}

; *sum += *a * *b, rounded once.
define void @fma8(<8 x float>* %sum, <8 x float>* %a, <8 x float>* %b) alwaysinline {
  %s = load <8 x float>, <8 x float>* %sum
  %x = load <8 x float>, <8 x float>* %a
  %y = load <8 x float>, <8 x float>* %b
  %r = call <8 x float> @llvm.fma.v8f32(<8 x float> %x, <8 x float> %y, <8 x float> %s)
  store <8 x float> %r, <8 x float>* %sum
  ret void
}

; Wait a moment; every 1024th time let another thread have the core (Linux's sched_yield). *turns counts the calls.
define void @relax(i32* %turns) alwaysinline {
  call void @llvm.x86.sse2.pause()
  %n = load i32, i32* %turns
  %next = add i32 %n, 1
  store i32 %next, i32* %turns
  %low = and i32 %next, 1023
  %again = icmp ne i32 %low, 0
  br i1 %again, label %done, label %yield
yield:
  %r = call i64 asm sideeffect "syscall", "={rax},{rax},~{rcx},~{r11},~{memory},~{dirflag},~{fpsr},~{flags}"(i64 24)
  br label %done
done:
  ret void
}

; *out = what a Q4_K superblock's header says of its eight sub-blocks, for an input *x: lanes 0-7 x d scale, lanes 8-15
; x dmin min. The 6-bit fields are put together as bytes: 4 lanes of shifts and masks instead of 32.
define void @scales_and_minima(<4 x i32>* %header, float* %x, <16 x float>* %out) alwaysinline {
  %h = load <4 x i32>, <4 x i32>* %header
  %xs = load float, float* %x
  %low = shufflevector <4 x i32> %h, <4 x i32> poison, <4 x i32> <i32 1, i32 3, i32 2, i32 3>
  %lows = lshr <4 x i32> %low, <i32 0, i32 0, i32 0, i32 4>
  %lowm = and <4 x i32> %lows, <i32 1061109567, i32 252645135, i32 1061109567, i32 252645135>
  %top = shufflevector <4 x i32> %h, <4 x i32> poison, <4 x i32> <i32 1, i32 1, i32 2, i32 2>
  %tops = lshr <4 x i32> %top, <i32 0, i32 2, i32 0, i32 2>
  %topm = and <4 x i32> %tops, <i32 0, i32 808464432, i32 0, i32 808464432>
  %fields = or <4 x i32> %lowm, %topm
  %bytes = bitcast <4 x i32> %fields to <16 x i8>
  %wide = zext <16 x i8> %bytes to <16 x i32>
  %steps = sitofp <16 x i32> %wide to <16 x float>
  %halves = bitcast <4 x i32> %h to <8 x half>
  %units = shufflevector <8 x half> %halves, <8 x half> poison, <4 x i32> <i32 0, i32 1, i32 0, i32 1>
  %unit = fpext <4 x half> %units to <4 x float>
  %x0 = insertelement <4 x float> poison, float %xs, i64 0
  %x4 = shufflevector <4 x float> %x0, <4 x float> poison, <4 x i32> zeroinitializer
  %xunit = fmul <4 x float> %unit, %x4
  %factor = shufflevector <4 x float> %xunit, <4 x float> poison, <16 x i32> <i32 0, i32 0, i32 0, i32 0, i32 0, i32 0, i32 0, i32 0, i32 1, i32 1, i32 1, i32 1, i32 1, i32 1, i32 1, i32 1>
  %r = fmul <16 x float> %steps, %factor
  store <16 x float> %r, <16 x float>* %out
  ret void
}

; *out = the eight 16-bit floats of *header, times *x.
define void @scaled_halves(<4 x i32>* %header, float* %x, <8 x float>* %out) alwaysinline {
  %h = load <4 x i32>, <4 x i32>* %header
  %halves = bitcast <4 x i32> %h to <8 x half>
  %wide = fpext <8 x half> %halves to <8 x float>
  %xs = load float, float* %x
  %x0 = insertelement <8 x float> poison, float %xs, i64 0
  %x8 = shufflevector <8 x float> %x0, <8 x float> poison, <8 x i32> zeroinitializer
  %r = fmul <8 x float> %wide, %x8
  store <8 x float> %r, <8 x float>* %out
  ret void
}

; *out = the sixteen signed bytes of *header, times *x.
define void @scaled_bytes(<4 x i32>* %header, float* %x, <16 x float>* %out) alwaysinline {
  %h = load <4 x i32>, <4 x i32>* %header
  %bytes = bitcast <4 x i32> %h to <16 x i8>
  %wide = sext <16 x i8> %bytes to <16 x i32>
  %steps = sitofp <16 x i32> %wide to <16 x float>
  %xs = load float, float* %x
  %x0 = insertelement <16 x float> poison, float %xs, i64 0
  %x16 = shufflevector <16 x float> %x0, <16 x float> poison, <16 x i32> zeroinitializer
  %r = fmul <16 x float> %steps, %x16
  store <16 x float> %r, <16 x float>* %out
  ret void
}

; *now = the CPU's time stamp counter.
define void @read_clock(i64* %now) alwaysinline {
  %t = call i64 @llvm.readcyclecounter()
  store i64 %t, i64* %now
  ret void
}
