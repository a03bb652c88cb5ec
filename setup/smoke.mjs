// Run by Node 24: loads the addon, computes something, and prints one line of JSON about it.
import { createRequire } from 'node:module';

const load = createRequire(new URL('../package.json', import.meta.url));
// Node 23 dropped util.isNullOrUndefined; tfjs-node still calls it.
load('node:util').isNullOrUndefined ??= (/** @type {unknown} */ value) => value === undefined || value === null;
const tf = load('@tensorflow/tfjs-node-gpu');

const product = tf.matMul(tf.fill([64, 64], 0.5), tf.fill([64, 64], 2));
const total = tf.sum(product).dataSync()[0];
if (total !== 64 ** 3) throw new Error(`TensorFlow computed ${total} where ${64 ** 3} is right`);
const { binding, isUsingGpuDevice } = tf.backend();
console.log(JSON.stringify({ tensorflow: binding.TF_Version, gpu: isUsingGpuDevice, node: process.versions.node }));
