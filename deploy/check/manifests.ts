/** The overlays as kubectl's own kustomize renders them. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseAllDocuments } from 'yaml';
import type { Manifest } from './control-plane.ts';
import { BIN, output } from './tools.ts';

const OVERLAYS = new URL('../kubernetes/overlays/', import.meta.url).pathname;

export const overlays = readdirSync(OVERLAYS).sort();

export async function render(overlay: string): Promise<Manifest[]> {
  const text = await output([join(BIN, 'kubectl'), 'kustomize', join(OVERLAYS, overlay)]);
  return parseAllDocuments(text).map((document) => document.toJS() as Manifest);
}

/** @throws Error when there is none */
export function named(manifests: Manifest[], kind: string, name: string): Manifest {
  const found = manifests.find((manifest) => manifest.kind === kind && manifest.metadata.name === name);
  if (found === undefined) throw new Error(`no ${kind} ${name} in ${manifests.map((m) => m.kind).join()}`);
  return found;
}
