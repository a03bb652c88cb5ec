/** Which GPU a process takes, told from the environment: there need not be any. */
import test from 'ava';
import { deviceName, environmentOf, visibleGpus } from '../nn/device.ts';

const models = ['NVIDIA A', 'NVIDIA B', 'NVIDIA C'];

test('without a choice every GPU is seen, with one those that it names, up to the first that is not there', (t) => {
  t.deepEqual(visibleGpus(undefined, models), ['0', '1', '2']);
  t.deepEqual(visibleGpus('2, 0', models), ['2', '0']);
  t.deepEqual(visibleGpus('1,7,0', models), ['1']);
  t.deepEqual(visibleGpus('GPU-8f6a,MIG-12', models), ['GPU-8f6a', 'MIG-12']);
  for (const none of ['', '-1', 'none']) t.deepEqual(visibleGpus(none, models), []);
  t.deepEqual(visibleGpus('0', []), []);
});

test('workers of a machine take its GPUs in turn, of those that were chosen', (t) => {
  const taken = [0, 1, 2].map((worker) => environmentOf(worker, visibleGpus('2,1', models)).CUDA_VISIBLE_DEVICES);
  t.deepEqual(taken, ['2', '1', '2']);
  t.deepEqual(environmentOf(0, []), {});
});

test('a device is called by its model, and CPU where no GPU is seen', (t) => {
  t.is(deviceName(['2'], models), 'NVIDIA C');
  t.is(deviceName(['GPU-8f6a'], models), 'NVIDIA A');
  t.is(deviceName([], models), 'CPU');
});
