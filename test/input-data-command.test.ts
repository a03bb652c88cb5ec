import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { data } from '../cli/data.ts';
import { BraidError } from '../core/errors.ts';
import { FORMATS } from './formats.ts';

const BRAID = join(import.meta.dirname, '../bin/braid.mjs');

test('data check of a source reads all formats, goes on behind what is broken, and names it', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'braid-data-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const braid = (...argv: string[]) =>
    spawnSync(process.execPath, [BRAID, 'data', ...argv], { cwd: folder, encoding: 'utf8' });
  cpSync(FORMATS, folder, { recursive: true });
  const sound = braid('check', 'tfrecord', '--first-label', '1');
  t.is(sound.status, 0, sound.stderr);
  t.regex(sound.stdout, /^tfrecord: 10 images \(tfrecord\), 3 classes of 3 to 4 images, all sound$/m);

  const file = join(folder, 'tfrecord/train-00000-of-00002');
  const bytes = readFileSync(file);
  const places = [...bytes.toString('latin1').matchAll(/\xff\xd8\xff/g)].map((match) => match.index);
  bytes[places[1]! + 300]! ^= 1;
  writeFileSync(file, bytes);
  const last = join(folder, 'tfrecord/train-00001-of-00002');
  writeFileSync(last, readFileSync(last).subarray(0, -8));
  const broken = braid('check', 'tfrecord', '--first-label', '1');
  t.is(broken.status, 1);
  t.regex(broken.stdout, /train-00000-of-00002, record 1: a record that its CRC-32C does not fit/);
  t.regex(broken.stdout, /train-00001-of-00002, record 4: found its end .*: the rest of the file is not read/);
  t.regex(broken.stdout, /^tfrecord: 9 images .*, 2 damaged$/m);

  const indexed = braid('index', 'tar');
  t.is(indexed.status, 0, indexed.stderr);
  t.is(indexed.stdout, 'tar/index.braid: 10 images of 3 classes in 2 files (tar)\n');
  const shard = join(folder, 'tar/shard-000001.tar');
  const tar = readFileSync(shard);
  tar[tar.indexOf(Buffer.from([0xff, 0xd8, 0xff])) + 300]! ^= 1;
  writeFileSync(shard, tar);
  const recipe = braid('check', writeRecipe(folder, 'tar'));
  t.is(recipe.status, 1, recipe.stderr);
  t.regex(recipe.stdout, /shard-000001\.tar, byte \d+: found other bytes than those that were indexed.* \(sample 5\)/);
  t.regex(recipe.stdout, /^tar \(test\): 10 images of 16x16x3, 3 classes of 3 to 4 images, 1 damaged$/m);
  const several = braid('index', 'tar/shard-000000.tar', 'tar/shard-000001.tar');
  t.regex(several.stderr, /2 sources, expected one \(a pattern goes in quotes\)/);
});

function writeRecipe(folder: string, path: string): string {
  const file = join(folder, 'recipe.yaml');
  writeFileSync(
    file,
    `{ name: x, data: { format: indexed, path: ${path}, testPath: ${path}, mean: [1, 1, 1], std: [1, 1, 1], augment: { pad: 0 },
       resizedCrop: { size: 16, evaluationResize: 20 } },
       branches: [{ network: resnet, depth: 8 }], method: { name: vanilla }, training: { batch: 2 } }`,
  );
  return file;
}

test('wrong use of braid data is refused with how to use it', async (t) => {
  for (const argv of [[], ['fech'], ['fetch'], ['fetch', 'a', 'b'], ['fetch', '--too'], ['check']]) {
    const error = await t.throwsAsync(data(argv), { instanceOf: BraidError, code: 'INVALID_RECIPE' }, argv.join(' '));
    t.regex(error.remedy, /braid data fetch <name>/);
  }
});

test('data check counts what is sound, and names each damaged file', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'braid-data-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const main = join(folder, 'main.mts');
  const images = join(folder, 'images');
  writeFileSync(
    main,
    `import { mkdirSync, writeFileSync } from 'node:fs';
     import { PNG } from ${JSON.stringify(import.meta.resolve('pngjs'))};
     import { data } from ${JSON.stringify(new URL('../cli/data.ts', import.meta.url).href)};
     const file = PNG.sync.write(new PNG({ width: 4, height: 4 }), { colorType: 2 });
     for (const name of ['cat', 'dog']) {
       mkdirSync('images/' + name, { recursive: true });
       for (const i of [0, 1]) writeFileSync('images/' + name + '/' + i + '.png', file);
     }
     if (process.argv[2] === 'damage') writeFileSync('images/dog/1.png', file.subarray(0, file.length - 20));
     process.exitCode = await data(['check', 'recipe.yaml']);`,
  );
  writeFileSync(
    join(folder, 'recipe.yaml'),
    `{ name: x, data: { format: folder, path: ${images}, testPath: ${images}, mean: [1, 1, 1], std: [1, 1, 1], augment: { pad: 1 } },
       branches: [{ network: resnet, depth: 8 }], method: { name: vanilla }, training: { batch: 2 } }`,
  );
  const run = (...argv: string[]) => spawnSync(process.execPath, [main, ...argv], { cwd: folder, encoding: 'utf8' });
  const sound = run();
  t.is(sound.status, 0, sound.stderr);
  t.regex(sound.stdout, /images \(train\): 4 images of 4x4x3, 2 classes of 2 images, all sound/);
  const damaged = run('damage');
  t.is(damaged.status, 1);
  t.regex(damaged.stdout, /images\/dog\/1\.png: a damaged PNG .*\(sample 3\)/);
  t.regex(damaged.stdout, /4 images of 4x4x3, 2 classes of 2 images, 1 damaged/);
});
