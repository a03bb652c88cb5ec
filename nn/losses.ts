/** Losses that methods are made of. Shape letters: B batch, C classes. */
import { logSoftmax, crossEntropy as perSampleCrossEntropy, stopGradient } from './graph/ops.ts';
import { type Tensor, tf } from './tensorflow.ts';

/**
 * Against the labels, smoothed as PyTorch's CrossEntropyLoss does it: the target is 1 - s + s / C for the label and s / C for
 * every other class.
 * @param logitsBC f32[B, C]   @param labelsB i32[B]   @param smoothing s, [0, 1)   @returns f32[] nats, mean over the batch
 */
export function crossEntropy(logitsBC: Tensor, labelsB: Tensor, smoothing = 0): Tensor {
  const hard = tf.mean(perSampleCrossEntropy(logitsBC, labelsB));
  if (smoothing === 0) return hard;
  const even = tf.neg(tf.mean(logSoftmax(logitsBC)));
  return tf.add(tf.mul(hard, tf.scalar(1 - smoothing)), tf.mul(even, tf.scalar(smoothing)));
}

/**
 * Temperature-scaled KL(teacher || student), times T^2 so that its gradient keeps the scale of cross-entropy
 * (Hinton et al. 2015, eq. 2). No gradient reaches the teacher.
 * @param studentBC, teacherBC f32[B, C] logits   @param temperature T > 0
 * @param epsilon added to every teacher probability, not renormalised: 1e-7 in the FFL and ONE code
 * @returns f32[] nats, mean over the batch
 */
export function distillation(studentBC: Tensor, teacherBC: Tensor, temperature: number, epsilon: number): Tensor {
  const logTeacher = logSoftmax(tf.div(stopGradient(teacherBC), tf.scalar(temperature)));
  const logStudent = logSoftmax(tf.div(studentBC, tf.scalar(temperature)));
  const teacher = tf.add(tf.exp(logTeacher), tf.scalar(epsilon));
  // sum q (log q - log p), where distributions that nearly agree leave little but rounding. Adding sum (p - q), which is
  // -epsilon C, makes every term q (d + exp(-d) - 1) of second order in d = log q - log p: same value, same gradient.
  const d = tf.sub(epsilon === 0 ? logTeacher : tf.log(teacher), logStudent);
  const perSample = tf.sum(tf.mul(teacher, tf.add(d, tf.expm1(tf.neg(d)))), 1);
  const nats = tf.add(tf.mean(perSample), tf.scalar(epsilon * studentBC.shape[1]!));
  return tf.mul(nats, tf.scalar(temperature * temperature));
}
