;; Both passes of a separable resize of interleaved RGB, on shared memory. Pointers, strides and offsets are bytes; sums are
;; i32: the u8 pixels times i16 weights, plus a half, shifted right by the weights' precision and clamped to u8.
;; Reads go up to 16 bytes beyond the last pixel, writes up to 16 bytes beyond a row: rows are written in ascending order.
;; After a change: node worker/input/build-kernels.ts
(module
  (import "env" "memory" (memory 1 65536 shared))

  ;; Each row of `rows` becomes `width` pixels. $firsts: i32[width], where in the row a pixel's first tap is; $weights:
  ;; i16[width, 4 * groups].
  (func (export "horizontal")
    (param $to i32) (param $toStride i32) (param $from i32) (param $fromStride i32) (param $rows i32)
    (param $firsts i32) (param $weights i32) (param $groups i32) (param $width i32) (param $precision i32)
    (local $out i32) (local $first i32) (local $weight i32) (local $last i32) (local $at i32) (local $group i32)
    (local $half v128) (local $sum v128) (local $pixels v128)
    (local.set $half (i32x4.splat (i32.shr_u (i32.shl (i32.const 1) (local.get $precision)) (i32.const 1))))
    (local.set $last (i32.add (local.get $firsts) (i32.shl (local.get $width) (i32.const 2))))
    (loop $row
      (local.set $out (local.get $to))
      (local.set $first (local.get $firsts))
      (local.set $weight (local.get $weights))
      (loop $pixel
        (local.set $at (i32.add (local.get $from) (i32.load (local.get $first))))
        (local.set $sum (local.get $half))
        (local.set $group (local.get $groups))
        (loop $taps
          (local.set $pixels (v128.load align=1 (local.get $at)))
          ;; r0 r1 g0 g1 b0 b1 0 0, then r2 r3 g2 g3 b2 b3 0 0
          (local.set $sum (i32x4.add (local.get $sum) (i32x4.dot_i16x8_s
            (i8x16.swizzle (local.get $pixels)
              (v128.const i8x16 0 -1 3 -1 1 -1 4 -1 2 -1 5 -1 -1 -1 -1 -1))
            (v128.load32_splat align=2 (local.get $weight)))))
          (local.set $sum (i32x4.add (local.get $sum) (i32x4.dot_i16x8_s
            (i8x16.swizzle (local.get $pixels)
              (v128.const i8x16 6 -1 9 -1 7 -1 10 -1 8 -1 11 -1 -1 -1 -1 -1))
            (v128.load32_splat offset=4 align=2 (local.get $weight)))))
          (local.set $at (i32.add (local.get $at) (i32.const 12)))
          (local.set $weight (i32.add (local.get $weight) (i32.const 8)))
          (br_if $taps (local.tee $group (i32.sub (local.get $group) (i32.const 1)))))
        (local.set $sum (i32x4.shr_s (local.get $sum) (local.get $precision)))
        (local.set $sum (i16x8.narrow_i32x4_s (local.get $sum) (local.get $sum)))
        (v128.store32_lane align=1 0 (local.get $out) (i8x16.narrow_i16x8_u (local.get $sum) (local.get $sum)))
        (local.set $out (i32.add (local.get $out) (i32.const 3)))
        (local.set $first (i32.add (local.get $first) (i32.const 4)))
        (br_if $pixel (i32.lt_u (local.get $first) (local.get $last))))
      (local.set $to (i32.add (local.get $to) (local.get $toStride)))
      (local.set $from (i32.add (local.get $from) (local.get $fromStride)))
      (br_if $row (local.tee $rows (i32.sub (local.get $rows) (i32.const 1))))))

  ;; `rows` rows of `bytes` bytes. $firsts: i32[rows], where a row's first tap is, from $from on; $weights:
  ;; i16[rows, 2 * pairs].
  (func (export "vertical")
    (param $to i32) (param $bytes i32) (param $from i32) (param $fromStride i32) (param $rows i32)
    (param $firsts i32) (param $weights i32) (param $pairs i32) (param $precision i32)
    (local $column i32) (local $at i32) (local $weight i32) (local $pair i32)
    (local $half v128) (local $s0 v128) (local $s1 v128) (local $s2 v128) (local $s3 v128)
    (local $a v128) (local $b v128) (local $mixed v128) (local $w v128)
    (local.set $half (i32x4.splat (i32.shr_u (i32.shl (i32.const 1) (local.get $precision)) (i32.const 1))))
    (loop $row
      (local.set $column (i32.const 0))
      (loop $columns
        (local.set $at (i32.add (i32.add (local.get $from) (i32.load (local.get $firsts))) (local.get $column)))
        (local.set $weight (local.get $weights))
        (local.set $pair (local.get $pairs))
        (local.set $s0 (local.get $half))
        (local.set $s1 (local.get $half))
        (local.set $s2 (local.get $half))
        (local.set $s3 (local.get $half))
        (loop $taps
          (local.set $a (v128.load align=1 (local.get $at)))
          (local.set $b (v128.load align=1 (i32.add (local.get $at) (local.get $fromStride))))
          (local.set $w (v128.load32_splat align=2 (local.get $weight)))
          (local.set $mixed (i8x16.shuffle 0 16 1 17 2 18 3 19 4 20 5 21 6 22 7 23 (local.get $a) (local.get $b)))
          (local.set $s0 (i32x4.add (local.get $s0)
            (i32x4.dot_i16x8_s (i16x8.extend_low_i8x16_u (local.get $mixed)) (local.get $w))))
          (local.set $s1 (i32x4.add (local.get $s1)
            (i32x4.dot_i16x8_s (i16x8.extend_high_i8x16_u (local.get $mixed)) (local.get $w))))
          (local.set $mixed (i8x16.shuffle 8 24 9 25 10 26 11 27 12 28 13 29 14 30 15 31 (local.get $a) (local.get $b)))
          (local.set $s2 (i32x4.add (local.get $s2)
            (i32x4.dot_i16x8_s (i16x8.extend_low_i8x16_u (local.get $mixed)) (local.get $w))))
          (local.set $s3 (i32x4.add (local.get $s3)
            (i32x4.dot_i16x8_s (i16x8.extend_high_i8x16_u (local.get $mixed)) (local.get $w))))
          (local.set $at (i32.add (local.get $at) (i32.shl (local.get $fromStride) (i32.const 1))))
          (local.set $weight (i32.add (local.get $weight) (i32.const 4)))
          (br_if $taps (local.tee $pair (i32.sub (local.get $pair) (i32.const 1)))))
        (v128.store align=1 (i32.add (local.get $to) (local.get $column))
          (i8x16.narrow_i16x8_u
            (i16x8.narrow_i32x4_s
              (i32x4.shr_s (local.get $s0) (local.get $precision)) (i32x4.shr_s (local.get $s1) (local.get $precision)))
            (i16x8.narrow_i32x4_s
              (i32x4.shr_s (local.get $s2) (local.get $precision)) (i32x4.shr_s (local.get $s3) (local.get $precision)))))
        (br_if $columns
          (i32.lt_u (local.tee $column (i32.add (local.get $column) (i32.const 16))) (local.get $bytes))))
      (local.set $to (i32.add (local.get $to) (local.get $bytes)))
      (local.set $firsts (i32.add (local.get $firsts) (i32.const 4)))
      (local.set $weights (i32.add (local.get $weights) (i32.shl (local.get $pairs) (i32.const 2))))
      (br_if $row (local.tee $rows (i32.sub (local.get $rows) (i32.const 1)))))))
