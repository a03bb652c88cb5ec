"""Takes the named files and folders out of a wheel: unpack.py <wheel> <destination> <path or folder/>...

Each file is written aside and renamed, so one that exists in its full size is whole and is not written again:
a run that was stopped goes on where it was.
"""

import os
import shutil
import sys
import zipfile

CHUNK_BYTES = 1 << 22  # large enough that a library of 800 MB is copied at the disk's speed


def wanted(name, takes):
    return any(name == take or (take.endswith("/") and name.startswith(take)) for take in takes)


def main(wheel, destination, takes):
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and wanted(m.filename, takes)]
        for take in takes:
            if not any(wanted(m.filename, [take]) for m in members):
                sys.exit(f"{os.path.basename(wheel)} has no {take}")
        for member in members:
            path = os.path.join(destination, member.filename)
            if os.path.exists(path) and os.path.getsize(path) == member.file_size:
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(member) as source, open(path + ".part", "wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
            mode = member.external_attr >> 16 & 0o777
            os.chmod(path + ".part", mode | 0o644)
            os.replace(path + ".part", path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
