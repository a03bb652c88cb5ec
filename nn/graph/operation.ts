/** What TensorFlow's operations are made tfjs kernels with. */
import {
  DType,
  EAGER_BACKEND,
  eagerBackend,
  type NamedTensorMap,
  type NodeBackend,
  type OpAttr,
  type Tensor,
  tf,
} from '../tensorflow.ts';

const binding = eagerBackend.binding;
export const typeAttr = (name: string, dtype: number): OpAttr => ({ name, type: binding.TF_ATTR_TYPE, value: dtype });
export const intsAttr = (name: string, value: number[]): OpAttr => ({ name, type: binding.TF_ATTR_INT, value });
export const stringAttr = (name: string, value: string): OpAttr => ({ name, type: binding.TF_ATTR_STRING, value });
export const boolAttr = (name: string, value: boolean): OpAttr => ({ name, type: binding.TF_ATTR_BOOL, value });
export const floatAttr = (name: string, value: number): OpAttr => ({ name, type: binding.TF_ATTR_FLOAT, value });

/** The recorder sets T to what the operands are in the graph. */
export const T = typeAttr('T', DType.FLOAT);

type Attrs = Record<string, unknown>;
type Inputs = Record<string, Tensor>;

interface Operation<Attributes> {
  run(backend: NodeBackend, inputs: Inputs, attrs: Attributes): Tensor | Tensor[];
  /** What the gradient reads, besides dy: inputs by name, outputs by position. */
  keep?: { inputs?: string[]; outputs?: boolean[] };
  gradient?(dy: Tensor | Tensor[], kept: Tensor[], attrs: Attributes): Record<string, () => Tensor>;
}

type Run<Attributes> = <Result extends Tensor | Tensor[] = Tensor>(inputs: Inputs, attrs?: Attributes) => Result;

export function operation<Attributes extends object = Attrs>(
  name: string,
  { run, keep, gradient }: Operation<Attributes>,
): Run<Attributes> {
  const kernelName = `Braid${name}`;
  tf.registerKernel({
    kernelName,
    backendName: EAGER_BACKEND,
    kernelFunc: ({ inputs, backend, attrs }) =>
      run(backend as NodeBackend, inputs as Inputs, (attrs ?? {}) as Attributes),
  });
  if (gradient !== undefined) {
    tf.registerGradient({
      kernelName,
      ...(keep?.inputs === undefined ? {} : { inputsToSave: keep.inputs }),
      ...(keep?.outputs === undefined ? {} : { outputsToSave: keep.outputs }),
      gradFunc: (dy, kept, attrs) => gradient(dy, kept, attrs as unknown as Attributes),
    });
  }
  return (inputs, attrs) =>
    tf.engine().runKernel(kernelName, inputs as unknown as NamedTensorMap, attrs as never) as never;
}

export const shapeTensor = (shape: number[]) => tf.tensor1d(shape, 'int32');

/** Of a window of pixels. */
export const windowAttrs = (stride: number, padding: 'SAME' | 'VALID' | 'EXPLICIT'): OpAttr[] => [
  T,
  intsAttr('strides', [1, stride, stride, 1]),
  stringAttr('padding', padding),
];
