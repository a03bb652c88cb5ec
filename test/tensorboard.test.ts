/** Event files, read back as TensorBoard does: checked record by record, parsed by another implementation of protobuf. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import protobuf from 'protobufjs';
import { EventFile } from '../coordinator/tensorboard.ts';
import { maskedCrc32c } from '../input/crc32c.ts';
import { smallRecipe, startCluster } from './fake-cluster.ts';
import { temporaryFolder } from './training.ts';

/** Of tensorflow/core/util/event.proto and framework/summary.proto. */
const Event = protobuf
  .parse(`
syntax = "proto3";
message Event {
  double wall_time = 1;
  int64 step = 2;
  oneof what { string file_version = 3; Summary summary = 5; SessionLog session_log = 7; }
}
message Summary { message Value { string tag = 1; float simple_value = 2; } repeated Value value = 1; }
message SessionLog { enum Status { NONE = 0; START = 1; } Status status = 1; }
`)
  .root.lookupType('Event');

interface Read {
  wallTime: number;
  step: number;
  fileVersion?: string;
  summary?: { value: { tag: string; simpleValue: number }[] };
  sessionLog?: { status: string };
}

/** Every event of the folder's files, in the order of their names. */
function eventsIn(folder: string): Read[] {
  const files = readdirSync(folder).filter((name) => name.startsWith('events.out.tfevents.'));
  return files.sort().flatMap((name) => {
    const bytes = readFileSync(join(folder, name));
    const events: Read[] = [];
    for (let at = 0; at < bytes.length; ) {
      const length = Number(bytes.readBigUInt64LE(at));
      const data = bytes.subarray(at + 12, at + 12 + length);
      if (bytes.readUInt32LE(at + 8) !== maskedCrc32c(bytes.subarray(at, at + 8))) throw new Error('length is damaged');
      if (bytes.readUInt32LE(at + 12 + length) !== maskedCrc32c(data)) throw new Error('data are damaged');
      events.push(Event.toObject(Event.decode(data), { longs: Number, enums: String }) as Read);
      at += 16 + length;
    }
    return events;
  });
}

test('scalars, steps of any size and a new start come back as they were written', async (t) => {
  await using folder = temporaryFolder();
  const events = new EventFile(folder.path, () => new Date(1_700_000_000_250));
  t.deepEqual(readdirSync(folder.path), []);
  events.scalars(3, { 'loss/total': 0.5, 'loss/ünï': -2 });
  events.scalars(5_000_000_000, { 'train/gradient_norm': Number.NaN });
  events.goTo(2);
  const wallTime = 1_700_000_000.25;
  t.deepEqual(eventsIn(folder.path), [
    { wallTime, fileVersion: 'brain.Event:2' },
    {
      wallTime,
      step: 3,
      summary: {
        value: [
          { tag: 'loss/total', simpleValue: 0.5 },
          { tag: 'loss/ünï', simpleValue: -2 },
        ],
      },
    },
    { wallTime, step: 5_000_000_000, summary: { value: [{ tag: 'train/gradient_norm', simpleValue: Number.NaN }] } },
    { wallTime, step: 3, sessionLog: { status: 'START' } },
  ] as Read[]);
});

test('a run leaves the figures of metrics.jsonl in an event file beside it', async (t) => {
  const { running, folder } = startCluster({ recipe: smallRecipe() });
  await running;
  const lines = readFileSync(join(folder, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const events = eventsIn(folder);
  const seriesOf = (tag: string) =>
    events.flatMap(({ step, summary }) =>
      (summary?.value ?? []).filter((value) => value.tag === tag).map(({ simpleValue }) => [step, simpleValue]),
    );
  const steps = lines.filter(({ kind }) => kind === 'step');
  t.true(steps.length > 1);
  t.deepEqual(
    seriesOf('loss/total'),
    steps.map(({ step, losses }) => [step + 1, Math.fround(losses.total)]),
  );
  t.deepEqual(
    seriesOf('train/learning_rate'),
    steps.map(({ step, learningRate }) => [step + 1, Math.fround(learningRate)]),
  );
  t.deepEqual(
    seriesOf('train/gradient_norm'),
    steps.map(({ step, gradientNorm }) => [step + 1, Math.fround(gradientNorm)]),
  );
  t.is(seriesOf('seconds/compute').length, steps.length);
  const epochs = lines.filter(({ kind }) => kind === 'epoch');
  t.true(epochs.length > 1);
  for (const classifier of ['branch.0', 'fused']) {
    t.deepEqual(
      seriesOf(`test_accuracy/${classifier}`),
      epochs.map(({ step, results }) => [
        step,
        Math.fround(results.find((result: { classifier: string }) => result.classifier === classifier).top1Accuracy),
      ]),
    );
  }
  t.is(events[0]!.fileVersion, 'brain.Event:2');
});
