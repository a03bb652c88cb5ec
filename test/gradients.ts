/** The flat gradient of a program, taken apart and put together. */
import type { Program } from '../nn/program.ts';

type ByName = Map<string, Float32Array>;

export function gradientsByName({ variables, rounds }: Program, gradient: Float32Array, round = 0): ByName {
  const sizes = new Map(variables.map(({ name, size }) => [name, size]));
  return new Map(
    Object.entries(rounds[round]!.gradientOffsets).map(([name, offset]) => [
      name,
      gradient.slice(offset, offset + sizes.get(name)!),
    ]),
  );
}

export function flatGradient({ rounds }: Program, gradients: ByName, round = 0): Float32Array {
  const { gradientLength, gradientOffsets } = rounds[round]!;
  const flat = new Float32Array(gradientLength);
  for (const [name, offset] of Object.entries(gradientOffsets)) flat.set(gradients.get(name)!, offset);
  return flat;
}
