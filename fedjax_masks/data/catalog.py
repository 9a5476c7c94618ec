"""Data sets that ``fedjax-masks list datasets`` names."""

#: Data sets by name, each with one line of help.
DATASETS: dict[str, str] = {
    "digits": "1,797 handwritten digits, 8x8x1, 10 classes; embedded, no download",
    "mnist": "70,000 handwritten digits, 28x28x1, 10 classes",
    "fashion_mnist": "70,000 articles of clothing, 28x28x1, 10 classes",
    "emnist/byclass": "814,255 handwritten characters, 28x28x1, 62 classes",
    "emnist/balanced": "131,600 handwritten characters, 28x28x1, 47 classes",
    "cifar10": "60,000 photographs, 32x32x3, 10 classes",
    "cifar100": "60,000 photographs, 32x32x3, 100 classes",
    "svhn_cropped": "99,289 house numbers, 32x32x3, 10 classes",
    "npz:PATH": "your own x_train, y_train, x_test, y_test (or x, y) in one .npz file",
    "npy:DIR": "the same arrays as single .npy files, memory-mapped",
}
