/** The data sets that `braid data fetch` knows: what they are made of, and where they come from. */

/** A file of the data set: verified by its content where that is known, else by its size (and its archive's hash). */
export type PublishedFile = { name: string } & (
  | { /** Of the inflated content, so that one hash fits however a source compressed it. */ sha256: string }
  | { bytes: number }
);

export type Source =
  /** The files themselves, at `url` + name. */
  | { kind: 'files'; url: string }
  /** A .tar.gz that holds them in `folder`. */
  | { kind: 'archive'; url: string; sha256: string; folder: string }
  /** A Debian or Ubuntu package, brought by apt-get, that installs them in `folder`. */
  | { kind: 'debian'; package: string; folder: string };

export interface Published {
  title: string;
  licence: string;
  files: PublishedFile[];
  /** In the order of trying. */
  sources: Source[];
  /** How to bring it by hand. */
  manual: string;
}

const cifarFile = (name: string, rows: number, rowBytes: number): PublishedFile => ({ name, bytes: rows * rowBytes });

export const published: Record<string, Published> = {
  'fashion-mnist': {
    title: 'Fashion-MNIST: 70,000 grey images of clothes, 28x28, 10 classes (idx)',
    licence: 'MIT, Zalando SE',
    files: [
      {
        name: 'train-images-idx3-ubyte.gz',
        sha256: 'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
      },
      {
        name: 'train-labels-idx1-ubyte.gz',
        sha256: 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
      },
      {
        name: 't10k-images-idx3-ubyte.gz',
        sha256: '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
      },
      {
        name: 't10k-labels-idx1-ubyte.gz',
        sha256: '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
      },
    ],
    sources: [
      { kind: 'files', url: 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/' },
      { kind: 'debian', package: 'dataset-fashion-mnist', folder: 'usr/share/datasets/fashion-mnist' },
    ],
    manual:
      'Bring the four *-ubyte.gz files of github.com/zalandoresearch/fashion-mnist, or those that the Debian package ' +
      'dataset-fashion-mnist installs in /usr/share/datasets/fashion-mnist',
  },
  cifar10: {
    title: 'CIFAR-10: 60,000 colour images, 32x32, 10 classes (cifar10)',
    licence: 'none stated; Krizhevsky 2009',
    files: [
      ...[1, 2, 3, 4, 5].map((batch) => cifarFile(`data_batch_${batch}.bin`, 10_000, 3073)),
      cifarFile('test_batch.bin', 10_000, 3073),
    ],
    sources: [
      {
        kind: 'archive',
        url: 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz',
        sha256: 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
        folder: 'cifar-10-batches-bin',
      },
    ],
    manual: 'Unpack cifar-10-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html and bring its .bin files',
  },
  cifar100: {
    title: 'CIFAR-100: 60,000 colour images, 32x32, 100 classes (cifar100)',
    licence: 'none stated; Krizhevsky 2009',
    files: [cifarFile('train.bin', 50_000, 3074), cifarFile('test.bin', 10_000, 3074)],
    sources: [
      {
        kind: 'archive',
        url: 'https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz',
        sha256: '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
        folder: 'cifar-100-binary',
      },
    ],
    manual: 'Unpack cifar-100-binary.tar.gz of www.cs.toronto.edu/~kriz/cifar.html and bring its .bin files',
  },
};
