/** Writes kernels.wasm.ts from kernels.wat: `node worker/input/build-kernels.ts`. A test tells when that was forgotten. */
import { readFileSync, writeFileSync } from 'node:fs';
import wabt from 'wabt';

/** kernels.wat as a WebAssembly binary. */
export async function compileKernels(): Promise<Uint8Array> {
  const source = readFileSync(new URL('kernels.wat', import.meta.url), 'utf8');
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
  const base64 = Buffer.from(await compileKernels()).toString('base64');
  const lines = base64.match(/.{1,100}/g)!.map((line) => `  '${line}'`);
  writeFileSync(
    new URL('kernels.wasm.ts', import.meta.url),
    `/** kernels.wat, compiled by build-kernels.ts: do not edit. */\nexport const KERNELS_WASM_BASE64 = [\n${lines.join(',\n')},\n].join('');\n`,
  );
}
