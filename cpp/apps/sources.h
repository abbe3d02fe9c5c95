// What a user names on swsl-classify's command line, as a stream of paths: the same, in the same order, as
// for `swsl`.
#pragma once

#include <functional>
#include <string>
#include <vector>

// Calls `take` with one path at a time, so that a million of them on stdin stay a stream: files as they are,
// folders recursively (a folder's files, then its folders, each in the order of their names' bytes), "-" for
// a path a line on stdin. A folder without images, or one that cannot be listed, comes in their place, which
// is then an image that cannot be used.
//
// Images of a folder are regular files with the suffix of one, and links to such or to nowhere. Hidden files
// and folders (a name that begins with a dot, @eaDir, __MACOSX), links to folders, pipes, sockets and devices
// are left out; at the end `report` gets a line that counts them, if there are any. `meanwhile`: what to do
// while no line comes on stdin, as StdinLines.
void for_each_image(const std::vector<std::string>& images,
                    const std::function<void(const std::string& path)>& take,
                    const std::function<void(const std::string& line)>& report = {},
                    const std::function<bool()>& meanwhile = {});

// What is wrong with a folder of the user's that came in its images' place; "" where that is another path.
std::string why_no_images(const std::vector<std::string>& images, const std::string& path);
