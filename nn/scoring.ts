/** The `evaluate` phase: how classifiers do on a batch. */
import { inTopK, logSoftmax, crossEntropy as perSampleCrossEntropy } from './graph/ops.ts';
import { CALIBRATION_BINS } from './scores.ts';
import { type Tensor, tf } from './tensorflow.ts';

const TOP_K = 5;

/**
 * nn/scores.ts's values for every classifier, one after another.
 * @param classifiers f32[B, classes] logits, by name   @param labels i32[B], -1 where the batch is padded
 */
export function scoresOf(classifiers: Record<string, Tensor>, labels: Tensor, classes: number): Tensor {
  const present = tf.cast(tf.greaterEqual(labels, tf.scalar(0, 'int32')), 'float32'); // -1 pads the last batch
  const targets = tf.maximum(labels, tf.scalar(0, 'int32'));
  const hits = (logits: Tensor, k: number) => tf.mul(tf.cast(inTopK(logits, targets, k), 'float32'), present);
  const bins = tf.tensor1d(Array.from({ length: CALIBRATION_BINS - 1 }, (_, i) => (i + 1) / CALIBRATION_BINS));
  return tf.concat(
    Object.values(classifiers).flatMap((logits) => {
      const right = hits(logits, 1);
      const confidence = tf.exp(tf.max(logSoftmax(logits), 1, true)); // [B, 1]
      const reached = tf.mul(tf.cast(tf.greaterEqual(confidence, bins), 'float32'), tf.expandDims(present, 1));
      // Of those that reached each edge (all reach the first): how many, their confidences, how many right.
      const counted = tf.concat([tf.expandDims(present, 1), reached], 1); // [B, bins]
      return [
        tf.stack([
          tf.sum(right),
          tf.sum(hits(logits, Math.min(TOP_K, classes))),
          tf.sum(tf.mul(perSampleCrossEntropy(logits, targets), present)),
        ]),
        tf.sum(counted, 0),
        tf.sum(tf.mul(counted, confidence), 0),
        tf.sum(tf.mul(counted, tf.expandDims(right, 1)), 0),
      ];
    }),
  );
}
