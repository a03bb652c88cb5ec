import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { data } from '../cli/data.ts';
import { BraidError } from '../core/errors.ts';

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
