/**
 * How much memory each phase of a graph takes beside variables, from its shapes alone: its nodes one after another, each
 * result there from its node to the last node that reads it.
 *
 * TensorFlow runs nodes as soon as they can, keeps what kernels need for themselves, and rounds what it allocates: what a
 * process really takes, `bench imagenet` says.
 */
import type { Graph } from './capture.ts';
import type { NodeDef } from './graphdef.ts';

export interface PhaseMemory {
  /** Most bytes at once: results, feeds, and what is stashed for a later phase or was by an earlier one. */
  peak: number;
  /** Of that, what stays when the phase is over, until another phase has read it. */
  stashed: number;
}

/** Results that are their operand under another name. */
const ALIASES = new Set(['Identity', 'Reshape', 'ExpandDims']);
/** Operations that write their result over an operand of its size, where nobody else reads it. */
const IN_PLACE = new Set('Add Sub Mul RealDiv Relu ReluGrad Relu6 Relu6Grad AddN Exp Neg Maximum Minimum'.split(' '));

export function phaseMemory(graph: Graph): Map<string, PhaseMemory> {
  const nodes = Map.groupBy(graph.nodes, ({ name }) => graph.phaseOf.get(name) ?? null);
  const fetched = new Set(Object.values(graph.phases).flatMap(({ fetches }) => fetches.map(({ node }) => node)));
  return new Map(
    Object.keys(graph.phases).map((phase) => [phase, memoryOf(nodes.get(phase) ?? [], graph.bytes, fetched)]),
  );
}

/** Bytes that each phase moves: what every node reads and writes. Caches make it less, and fused kernels. */
export function phaseTraffic(graph: Graph): Map<string, number> {
  const nodes = Map.groupBy(graph.nodes, ({ name }) => graph.phaseOf.get(name) ?? null);
  const sizeOf = (edge: string) => graph.bytes.get(edge) ?? 0;
  const trafficOf = ({ name, op, inputs }: NodeDef) => {
    if (ALIASES.has(op) || op === 'Const') return 0;
    const results = [name, ...OTHER_RESULTS.map((at) => `${name}:${at}`)];
    return [...inputs, ...results].reduce((sum, edge) => sum + sizeOf(edge), 0);
  };
  return new Map(
    Object.keys(graph.phases).map((phase) => [
      phase,
      (nodes.get(phase) ?? []).reduce((sum, node) => sum + trafficOf(node), 0),
    ]),
  );
}

function memoryOf(nodes: NodeDef[], bytes: Graph['bytes'], fetched: Set<string>): PhaseMemory {
  const roots = new Map<string, string>();
  const rootOf = (edge: string) => roots.get(edge) ?? edge;
  const sizeOf = (edge: string) => bytes.get(edge) ?? 0;
  /** Of variables that outlive the phase: reading them takes nothing. */
  const borrowed = new Set<string>();
  const lastUse = new Map<string, number>();
  let live = 0;
  nodes.forEach(({ name, op, inputs }, i) => {
    if (op === 'ReadVariableOp') {
      if (isStash(inputs[0]!)) live += sizeOf(name);
      else borrowed.add(name);
    } else if (ALIASES.has(op)) roots.set(name, rootOf(inputs[0]!));
    const stays = fetched.has(name) || (op === 'AssignVariableOp' && isStash(inputs[0]!));
    for (const input of inputs) lastUse.set(rootOf(input), stays ? Number.POSITIVE_INFINITY : i);
  });
  let peak = live;
  let stashed = 0;
  nodes.forEach(({ name, op, inputs }, i) => {
    if (op === 'AssignVariableOp' && isStash(inputs[0]!)) stashed += sizeOf(rootOf(inputs[1]!));
    const read = new Set(inputs.map(rootOf));
    const freed = [...read].filter((root) => lastUse.get(root) === i && !borrowed.has(root));
    if (!ALIASES.has(op) && op !== 'ReadVariableOp') {
      const over = IN_PLACE.has(op) ? freed.findIndex((root) => sizeOf(root) === sizeOf(name)) : -1;
      if (over >= 0) live -= sizeOf(freed.splice(over, 1)[0]!);
      const results = [name, ...OTHER_RESULTS.map((at) => `${name}:${at}`)].filter((edge) => bytes.has(edge));
      for (const edge of results) live += sizeOf(edge);
      peak = Math.max(peak, live);
      freed.push(...results.filter((edge) => !lastUse.has(edge)));
    }
    for (const root of freed) live -= sizeOf(root);
  });
  return { peak, stashed };
}

const OTHER_RESULTS = [1, 2, 3, 4, 5]; // FusedBatchNormV3 has six in all, SplitV's are views

function isStash(handle: string): boolean {
  return handle.startsWith('stash/');
}
