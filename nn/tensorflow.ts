/**
 * TensorFlow, loaded once for the thread that imports this. Everything in nn/ that computes goes through here.
 *
 * Thread counts and the GPU are chosen by environment variables that TensorFlow reads when it loads: see nn/device.ts.
 */
import { createRequire } from 'node:module';
import type * as TensorFlow from '@tensorflow/tfjs-node-gpu';

const require = createRequire(import.meta.url);

// tfjs-node calls these. Node 23 dropped the first.
const util = require('node:util') as Record<string, unknown>;
util.isNullOrUndefined ??= (value: unknown) => value == null;
util.isArray = Array.isArray; // still there, but warns

export const tf = require('@tensorflow/tfjs-node-gpu') as typeof TensorFlow;

export type Tensor = TensorFlow.Tensor;
export type NamedTensorMap = TensorFlow.NamedTensorMap;
export type KernelBackend = TensorFlow.KernelBackend;

/** Numbers of TensorFlow's DataType that Braid uses (tensorflow/core/framework/types.proto). */
export const DType = {
  FLOAT: 1,
  INT32: 3,
  UINT8: 4,
  STRING: 7,
  INT64: 9,
  BOOL: 10,
  BFLOAT16: 14,
  HALF: 19,
  RESOURCE: 20,
} as const;
export type DType = (typeof DType)[keyof typeof DType];

/** An attribute of an operation, as tfjs-node's kernels write it. */
export interface OpAttr {
  name: string;
  /** One of the binding's TF_ATTR_ numbers. */
  type: number;
  value: unknown;
}

export interface TensorMetadata {
  id: number;
  shape: number[];
  dtype: number;
}

/** The part of the addon that tfjs-node's backend and Braid call (binding/tfjs_binding.cc). */
export interface Binding {
  readonly TF_ATTR_STRING: number;
  readonly TF_ATTR_INT: number;
  readonly TF_ATTR_FLOAT: number;
  readonly TF_ATTR_BOOL: number;
  readonly TF_ATTR_TYPE: number;
  readonly TF_ATTR_SHAPE: number;
  readonly TF_Version: string;
  createTensor(shape: number[], dtype: number, values: unknown): number;
  deleteTensor(id: number): void;
  tensorDataSync(id: number): Float32Array | Int32Array | Uint8Array;
  executeOp(op: string, attrs: OpAttr[], inputs: number[], outputs: number): TensorMetadata[];
  isUsingGpuDevice(): boolean;
  loadSavedModel(folder: string, tags: string): number;
  deleteSavedModel(id: number): void;
  runSavedModel(id: number, inputs: number[], inputNames: string, outputNames: string): TensorMetadata[];
  getNumOfTensors(): number;
}

/** tfjs-node's backend: its kernels call `execute...`, which call `binding.executeOp`. */
export interface NodeBackend extends KernelBackend {
  binding: Binding;
  executeSingleOutput(op: string, attrs: OpAttr[], inputs: Tensor[]): Tensor;
  executeMultipleOutputs(op: string, attrs: OpAttr[], inputs: Tensor[], outputs: number): Tensor[];
  createOutputTensor(metadata: TensorMetadata): Tensor;
  getInputTensorIds(tensors: Tensor[]): number[];
}

export const EAGER_BACKEND = 'tensorflow';
export const eagerBackend = tf.findBackend(EAGER_BACKEND) as NodeBackend;
