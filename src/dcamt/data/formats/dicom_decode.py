"""Decode compressed DICOM slices; run as a program of its own by dicom.py.

The decoders are C++ and may bring their process down over a damaged stream: this one is expendable.
Arguments: rows and columns. Standard input: paths, separated by zero bytes. Standard output: the
rescaled pixels of all slices as float32, row by row.
"""

import sys

import SimpleITK


def main() -> None:
    rows, columns = (int(number) for number in sys.argv[1:])
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    for path in sys.stdin.buffer.read().split(b"\0"):
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(path.decode())
        reader.ReadImageInformation()
        if tuple(reader.GetSize()) != (columns, rows, 1) or reader.GetNumberOfComponents() != 1:
            sys.exit(1)
        values = SimpleITK.GetArrayFromImage(reader.Execute())
        sys.stdout.buffer.write(values.astype("<f4").tobytes())


if __name__ == "__main__":
    main()
