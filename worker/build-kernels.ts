/** Writes each kernels.wasm.ts from the kernels.wat beside it: `node worker/build-kernels.ts`. Tests tell when that was forgotten. */
import { readFileSync, writeFileSync } from 'node:fs';
import wabt from 'wabt';

export const KERNELS = { exchange: 'exchange/kernels', input: 'input/kernels' } as const;

/** A kernels.wat as a WebAssembly binary. */
export async function compileKernels(which: keyof typeof KERNELS): Promise<Uint8Array> {
  const source = readFileSync(new URL(`${KERNELS[which]}.wat`, import.meta.url), 'utf8');
  const features = { simd: true, threads: true };
  const module = (await wabt()).parseWat('kernels.wat', source, features);
  try {
    // @ts-expect-error: its types do not know that the features are asked for a second time
    module.validate(features);
    return module.toBinary({}).buffer;
  } finally {
    module.destroy();
  }
}

if (import.meta.main) {
  for (const which of Object.keys(KERNELS) as (keyof typeof KERNELS)[]) {
    const base64 = Buffer.from(await compileKernels(which)).toString('base64');
    const lines = base64.match(/.{1,100}/g)!.map((line) => `  '${line}'`);
    writeFileSync(
      new URL(`${KERNELS[which]}.wasm.ts`, import.meta.url),
      `/** kernels.wat, compiled by worker/build-kernels.ts: do not edit. */\nexport const KERNELS_WASM_BASE64 = [\n${lines.join(',\n')},\n].join('');\n`,
    );
  }
}
