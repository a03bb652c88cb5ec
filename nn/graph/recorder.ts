/**
 * A stand-in for the addon's binding that writes operations down instead of running them.
 *
 * tfjs-node turns every kernel into `binding.executeOp(op, attrs, inputs, outputs)`. Its backend, given this binding,
 * therefore records ordinary tfjs code, gradients included, as nodes of a TensorFlow graph. What tfjs cannot know, the
 * recorder adds: the type of bf16 and f16 edges (tfjs believes they are float32), and phases.
 *
 * A phase is what one session run executes. An operation belongs to the phase that is current when it is recorded. An
 * edge that crosses from one phase to another is stashed: assigned to a resource variable in the first run, read and
 * destroyed in the second. Constants belong to no phase, and a variable is read anew in each.
 */
import { BraidError } from '../../core/errors.ts';
import { type Binding, DType, eagerBackend, type OpAttr, type TensorMetadata } from '../tensorflow.ts';
import type { AttrValue, HOST, NodeDef } from './graphdef.ts';
import { BYTES, CAPTURED_OPS, shapesOf } from './shapes.ts';

/** One result of a node. */
export interface Edge {
  /** 'node' or 'node:1', as a NodeDef names it. */
  name: string;
  shape: number[];
  /** The type in the graph, where bf16 is bf16 and f16 is f16. */
  dtype: number;
  /** null: a constant, there in every phase. */
  phase: string | null;
  value?: ArrayLike<number>;
  /** The handle's node, where this edge is what a variable holds. */
  variable?: string;
}

/** Its first operand, once its second has been computed. Not TensorFlow's: what it becomes is a control edge. */
export const AFTER = 'After';

/** Constants above this many equal elements become a Fill: the gradient of a mean holds ones of the input's shape. */
const FILL_ABOVE_ELEMENTS = 256;

/** Which operand gives an operation its type T, where it is not the first. */
const TYPED_BY: Record<string, number> = {
  AvgPoolGrad: 1,
  Conv2DBackpropInput: 1,
  DepthwiseConv2dNativeBackpropInput: 1,
  Fill: 1,
  InTopKV2: 1,
  OneHot: 2,
  Select: 1,
};

/** Operations that take every operand in the one type T. */
const ONE_TYPE = new Set(
  'Add Sub Mul RealDiv Maximum Minimum Pow SquaredDifference AddN BatchMatMulV2 Conv2D ReluGrad'.split(' '),
);

const eager = eagerBackend.binding;

export class Recorder {
  readonly nodes: NodeDef[] = [];
  phase = '';
  /** Where in the model recording is: for node names and errors. */
  readonly layers: string[] = [];
  /** The tfjs kernel that is being recorded. */
  kernel = '';
  /** Per phase: nodes that must have run before the phase is done. */
  readonly updates = new Map<string, Set<string>>();
  /** What tfjs-node's backend sees. */
  readonly binding: Binding;
  /** Bytes of results, by name, and the phase of every node that has one: what nn/graph/memory.ts counts by. */
  readonly bytes = new Map<string, number>();
  readonly phaseOf = new Map<string, string>();

  private readonly edges = new Map<number, Edge>();
  private nextId = 1;
  private readonly names = new Map<string, number>();
  private readonly constants = new Map<string, Edge>();
  private readonly reads = new Map<string, Edge>();
  /** Handles of edges that are carried from one phase to another. */
  private readonly stashed = new Set<string>();

  constructor() {
    // The addon's properties are not enumerable, so a spread would lose the numbers of its types and attributes.
    const names = Object.getOwnPropertyNames(eager) as (keyof Binding)[];
    this.binding = {
      ...(Object.fromEntries(names.map((name) => [name, eager[name]])) as unknown as Binding),
      createTensor: (shape, dtype, values) => this.register(this.constant(shape, dtype, values as ArrayLike<number>)),
      deleteTensor: (id) => void this.edges.delete(id),
      tensorDataSync: (id) => this.valueOf(id),
      executeOp: (op, attrs, inputs, outputs) => this.executeOp(op, attrs, inputs, outputs),
      isUsingGpuDevice: () => false,
    };
  }

  edge(id: number): Edge {
    const edge = this.edges.get(id);
    if (edge === undefined) throw this.error(`tensor ${id} belongs to no operation of this capture`);
    return edge;
  }

  /** Makes an edge known to tfjs. */
  register(edge: Edge): number {
    if (edge.phase !== null) this.note(edge);
    this.edges.set(this.nextId, edge);
    return this.nextId++;
  }

  /** Appends a node to the current phase (or, when all operands are constants, to none). */
  append(
    op: string,
    inputs: Edge[],
    attrs: Record<string, AttrValue>,
    { control = [], device, ...options }: { name?: string; control?: string[]; device?: typeof HOST } = {},
  ): string {
    const name = options.name ?? this.uniqueName([...this.layers, op].join('/'));
    const resolved = inputs.map((edge) => this.resolve(edge).name);
    const all = [...resolved, ...control.map((node) => `^${node}`)];
    this.nodes.push({ name, op, inputs: all, attrs, ...(device && { device }) });
    this.phaseOf.set(name, this.phase);
    return name;
  }

  private note({ name, shape, dtype, phase }: Edge): void {
    this.phaseOf.set(name.split(':')[0]!, phase!);
    this.bytes.set(
      name,
      shape.reduce((a, b) => a * b, BYTES[dtype]!),
    );
  }

  /** Marks a node as something that the current phase must not end without. */
  update(node: string): void {
    const updates = this.updates.get(this.phase) ?? new Set();
    this.updates.set(this.phase, updates.add(node));
  }

  constant(shape: number[], dtype: number, values: ArrayLike<number>): Edge {
    const array = typedArray(dtype, values);
    if (array.length > FILL_ABOVE_ELEMENTS && array.every((value) => value === array[0])) {
      const dims = this.constant([shape.length], DType.INT32, shape);
      const name = this.append('Fill', [dims, this.constant([], dtype, [array[0]!])], { T: { type: dtype } });
      return { name, shape, dtype, phase: null, value: array };
    }
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    const key = array.length <= FILL_ABOVE_ELEMENTS ? `${dtype}[${shape}]${array}` : undefined;
    const known = key === undefined ? undefined : this.constants.get(key);
    if (known !== undefined) return known;
    const name = this.uniqueName('const');
    const attrs = { dtype: { type: dtype }, value: { tensor: { dtype, shape, bytes: bytes.slice() } } };
    this.nodes.push({ name, op: 'Const', inputs: [], attrs });
    const edge: Edge = { name, shape, dtype, phase: null, value: array };
    if (key !== undefined) this.constants.set(key, edge);
    return edge;
  }

  /** The edge as the current phase can use it. */
  private resolve(edge: Edge): Edge {
    if (edge.variable !== undefined) return this.readVariable(edge.variable, edge.shape, edge.dtype);
    return edge.phase === null || edge.phase === this.phase ? edge : this.unstash(edge);
  }

  readVariable(handle: string, shape: number[], dtype: number, afterwards?: (read: string) => void): Edge {
    const key = `${this.phase} ${handle}`;
    let edge = this.reads.get(key);
    if (edge === undefined) {
      const name = this.uniqueName(`${handle}/read`);
      // `_shape` is ours (TensorFlow keeps and ignores attributes that begin with an underscore).
      this.nodes.push({
        name,
        op: 'ReadVariableOp',
        inputs: [handle],
        attrs: { dtype: { type: dtype }, _shape: { shape } },
      });
      edge = { name, shape, dtype, phase: this.phase };
      this.reads.set(key, edge);
      this.note(edge);
      afterwards?.(name);
    }
    return edge;
  }

  /** What a variable holds once a node of the current phase has changed it. */
  readAfter(update: string, handle: string, shape: number[]): Edge {
    const name = this.uniqueName(`${handle}/changed`);
    const attrs = { dtype: { type: DType.FLOAT }, _shape: { shape } };
    this.nodes.push({ name, op: 'ReadVariableOp', inputs: [handle, `^${update}`], attrs });
    const edge = { name, shape, dtype: DType.FLOAT, phase: this.phase };
    this.note(edge);
    return edge;
  }

  /** Carries an edge of an earlier phase into the current one. AssignVariableOp shares the buffer: nothing is copied. */
  private unstash(edge: Edge): Edge {
    const reader = this.phase;
    const handle = `stash/${edge.name.replace(':', '_')}`;
    const known = this.reads.get(`${reader} ${handle}`);
    if (known !== undefined) return known;
    if (this.stashed.has(handle)) {
      throw this.error(`${edge.name} of phase ${edge.phase} is read by a second phase, ${reader}`);
    }
    this.stashed.add(handle);
    this.nodes.push({
      name: handle,
      op: 'VarHandleOp',
      inputs: [],
      attrs: variableAttrs(handle, edge.shape, edge.dtype),
    });
    this.phase = edge.phase!;
    this.update(
      this.append('AssignVariableOp', [{ name: handle, shape: [], dtype: DType.RESOURCE, phase: null }, edge], {
        dtype: { type: edge.dtype },
      }),
    );
    this.phase = reader;
    return this.readVariable(handle, edge.shape, edge.dtype, (read) => {
      const destroy = this.uniqueName(`${handle}/destroy`);
      this.nodes.push({
        name: destroy,
        op: 'DestroyResourceOp',
        inputs: [handle, `^${read}`],
        attrs: { ignore_lookup_error: { b: true } },
      });
      this.update(destroy);
    });
  }

  private executeOp(op: string, opAttrs: OpAttr[], inputIds: number[], outputs: number): TensorMetadata[] {
    if (op === AFTER) return [this.after(inputIds)];
    if (!CAPTURED_OPS.has(op)) {
      throw this.error(`the TensorFlow operation ${op} is not captured`, {
        remedy: `Add its shape function to nn/graph/shapes.ts, or write the layer with operations that are there.`,
      });
    }
    const inputs = inputIds.map((id) => this.edge(id));
    const attrs = Object.fromEntries(opAttrs.map((attr) => [attr.name, attrValue(attr)]));
    // tfjs-node leaves ExpandDims' type to the eager runtime.
    if ('T' in attrs || op === 'ExpandDims') {
      const by = inputs[TYPED_BY[op] ?? 0]!;
      attrs.T = { type: by.dtype };
      const other = ONE_TYPE.has(op) ? inputs.find((input) => input.dtype !== by.dtype) : undefined;
      if (other !== undefined) {
        throw this.error(`${op} of ${typeName(by.dtype)}[${by.shape}] and ${typeName(other.dtype)}[${other.shape}]`, {
          remedy: 'Cast one of them: cast() of nn/graph/ops.ts.',
        });
      }
    }
    if ('SrcT' in attrs) attrs.SrcT = { type: inputs[0]!.dtype };
    let results: { shape: number[]; dtype: number }[];
    try {
      results = shapesOf(op, inputs, attrs);
    } catch (cause) {
      const operands = inputs.map(({ shape }) => `[${shape}]`).join(', ');
      throw this.error(`${op} of ${operands}: ${(cause as Error).message}`, { cause });
    }
    if (results.length < outputs) throw this.error(`${op} gives ${results.length} results, ${outputs} were asked for`);
    const constant = inputs.every((input) => input.phase === null && input.variable === undefined);
    const name = this.append(op, inputs, attrs);
    return results.slice(0, outputs).map(({ shape, dtype }, i) => {
      const edge: Edge = { name: i === 0 ? name : `${name}:${i}`, shape, dtype, phase: constant ? null : this.phase };
      return { id: this.register(edge), shape, dtype: shownType(dtype) };
    });
  }

  /** A control edge: TensorFlow would not wait for an operand whose value nobody reads. */
  private after([id, otherId]: number[]): TensorMetadata {
    const { shape, dtype, ...edge } = this.edge(id!);
    const [other] = this.resolve(this.edge(otherId!)).name.split(':');
    const name = this.append('Identity', [{ shape, dtype, ...edge }], { T: { type: dtype } }, { control: [other!] });
    return { id: this.register({ name, shape, dtype, phase: this.phase }), shape, dtype: shownType(dtype) };
  }

  private valueOf(id: number): Float32Array | Int32Array | Uint8Array {
    const { value, name } = this.edge(id);
    if (value !== undefined) return value as Float32Array;
    throw this.error(`the value of ${name} is asked for, but it is only known when the graph runs`, {
      remedy: 'Compute with the tensor instead of reading it (dataSync, arraySync, print, a JavaScript if).',
    });
  }

  error(message: string, options: { remedy?: string; cause?: unknown } = {}): BraidError {
    const where = this.layers.length > 0 ? `layer ${this.layers.join('.')}` : `phase ${this.phase}`;
    const by =
      this.kernel === '' ? '' : ` (kernel ${this.kernel}, tf.${this.kernel[0]!.toLowerCase()}${this.kernel.slice(1)})`;
    return new BraidError('CAPTURE', `${where}: ${message}${by}`, options);
  }

  uniqueName(wanted: string): string {
    const name = wanted.replace(/[^A-Za-z0-9_.\\/-]/g, '.');
    const used = this.names.get(name) ?? 0;
    this.names.set(name, used + 1);
    return used === 0 ? name : `${name}_${used}`;
  }
}

/** What tfjs takes a type for: it knows neither bf16 nor f16. */
export function shownType(dtype: number): number {
  return dtype === DType.BFLOAT16 || dtype === DType.HALF ? DType.FLOAT : dtype;
}

export function variableAttrs(name: string, shape: number[], dtype: number): Record<string, AttrValue> {
  return { shared_name: { s: name }, container: { s: '' }, dtype: { type: dtype }, shape: { shape } };
}

function attrValue({ name, type, value }: OpAttr): AttrValue {
  const list = Array.isArray(value);
  switch (type) {
    case eager.TF_ATTR_STRING:
      return list ? { list: { s: value } } : { s: value as string };
    case eager.TF_ATTR_INT:
      return list ? { list: { i: value } } : { i: value as number };
    case eager.TF_ATTR_FLOAT:
      return list ? { list: { f: value } } : { f: value as number };
    case eager.TF_ATTR_BOOL:
      return { b: value as boolean };
    case eager.TF_ATTR_TYPE:
      return { type: value as number };
    case eager.TF_ATTR_SHAPE:
      return { shape: value as number[] };
    default:
      throw new BraidError('CAPTURE', `attribute ${name} has type ${type}, which no captured operation uses`);
  }
}

function typedArray(dtype: number, values: ArrayLike<number>): Float32Array | Int32Array | Uint8Array {
  if (dtype === DType.FLOAT) return Float32Array.from(values);
  if (dtype === DType.INT32) return Int32Array.from(values);
  if (dtype === DType.BOOL) return Uint8Array.from(values);
  throw new BraidError('CAPTURE', `a constant of type ${typeName(dtype)}`);
}

function typeName(dtype: number): string {
  return (Object.entries(DType).find(([, number]) => number === dtype)?.[0] ?? `type ${dtype}`).toLowerCase();
}
