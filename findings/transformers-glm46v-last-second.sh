#!/usr/bin/env bash
# Glm46VVideoProcessor of transformers 5.24.0 leaves out what comes behind a clip's last whole second, and spreads the
# frames it wanted for the whole clip over the rest: of 49 frames at 25 a second (1.96 seconds) it reads none behind frame
# 25, of 50 it goes on to frame 46. A clip of less than a second is its first frame, twice, so that whatever happens in it
# can't be seen. No warning tells; the frames of Qwen3-VL's processor reach a clip's end. The argument fps is taken and
# changes nothing.
#
# Seen on 2026-12-01 with torch 2.14.1, torchvision 0.29.1 and numpy 2.4.6, frames at 25 a second:
#   24 frames: 2 read, 0 to 0
#   25 frames: 6 read, 0 to 21
#   49 frames: 12 read, 0 to 25
#   50 frames: 12 read, 0 to 46
#   124 frames: 30 read, 0 to 100
#   50 frames, fps=1: 12 read, 0 to 46
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.14.1" "torchvision==0.29.1" "transformers==5.24.0" "numpy==2.4.6" pillow
cat >"$folder/look.py" <<'PY'
import numpy as np
from transformers import Glm46VVideoProcessor

processor = Glm46VVideoProcessor()


def read(total, **how):
    clip = np.zeros((total, 56, 56, 3), dtype=np.uint8)
    about = {"total_num_frames": total, "fps": 25.0, "duration": total / 25, "height": 56, "width": 56}
    made = processor(videos=[clip], video_metadata=[about], return_metadata=True, return_tensors="pt", **how)
    frames = made["video_metadata"][0].frames_indices
    asked = "".join(f", {name}={value}" for name, value in how.items())
    print(f"{total} frames{asked}: {len(frames)} read, {min(frames)} to {max(frames)}")


for total in (24, 25, 49, 50, 124):
    read(total)
read(50, fps=1)
PY
found=$("$folder/venv/bin/python" "$folder/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "24 frames: 2 read, 0 to 0
25 frames: 6 read, 0 to 21
49 frames: 12 read, 0 to 25
50 frames: 12 read, 0 to 46
124 frames: 30 read, 0 to 100
50 frames, fps=1: 12 read, 0 to 46" ]
