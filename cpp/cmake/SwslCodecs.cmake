# Defines JPEG::JPEG and PNG::PNG as releases that are pinned here, compiled with everything else and linked into it: libjpeg-turbo of the
# major version that Pillow's wheels have, so that damaged progressive files too have Pillow's pixels. zlib is the system's.
#
# In:  SWSL_CODEC_ARCHIVES, a folder for the two archives. What lies there with the right hash is not downloaded.
# libjpeg-turbo needs a C compiler, and on x86-64 nasm.
include(ExternalProject)
set(SWSL_CODEC_ARCHIVES "${CMAKE_CURRENT_BINARY_DIR}/archives" CACHE PATH "Folder of the sources of SWSL_BUNDLED_CODECS")
find_package(ZLIB REQUIRED)

set(_settings -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_POSITION_INDEPENDENT_CODE=ON
  -DCMAKE_C_VISIBILITY_PRESET=hidden)
foreach(_variable CMAKE_TOOLCHAIN_FILE CMAKE_C_COMPILER CMAKE_SYSROOT CMAKE_PREFIX_PATH ZLIB_ROOT)
  if(DEFINED ${_variable})
    string(REPLACE ";" "|" _value "${${_variable}}")
    list(APPEND _settings "-D${_variable}=${_value}")
  endif()
endforeach()

# _swsl_codec(format name version SHA256 URL library licences …): the rest are CMake's arguments for it.
function(_swsl_codec format name version sha256 url library licences)
  set(prefix ${CMAKE_CURRENT_BINARY_DIR}/codecs/${name}-${version})
  ExternalProject_Add(${name}
    URL ${url} URL_HASH SHA256=${sha256} DOWNLOAD_DIR ${SWSL_CODEC_ARCHIVES} DOWNLOAD_NAME ${name}-${version}.tar.gz
    DOWNLOAD_EXTRACT_TIMESTAMP OFF PREFIX ${prefix} INSTALL_DIR ${prefix}/installed LIST_SEPARATOR |
    CMAKE_ARGS -DCMAKE_INSTALL_PREFIX=<INSTALL_DIR> ${_settings} ${ARGN}
    BUILD_BYPRODUCTS <INSTALL_DIR>/lib/${library}
    LOG_CONFIGURE ON LOG_BUILD ON LOG_INSTALL ON LOG_OUTPUT_ON_FAILURE ON)
  foreach(licence IN LISTS licences)  # which whoever passes the binaries on passes on
    swsl_document(${prefix}/src/${name}/${licence} ${name}.${licence})
  endforeach()
  file(MAKE_DIRECTORY ${prefix}/installed/include)
  add_library(${format}::${format} STATIC IMPORTED GLOBAL)
  set_target_properties(${format}::${format} PROPERTIES IMPORTED_LOCATION ${prefix}/installed/lib/${library}
    INTERFACE_INCLUDE_DIRECTORIES ${prefix}/installed/include)
  add_dependencies(${format}::${format} ${name})
  set(${format}_FOUND TRUE PARENT_SCOPE)
  message(STATUS "swsl: ${name} ${version}, built in")
endfunction()

_swsl_codec(JPEG libjpeg-turbo 3.1.3 3a13a5ba767dc8264bc40b185e41368a80d5d5f945944d1dbaa4b2fb0099f4e5
  https://github.com/libjpeg-turbo/libjpeg-turbo/archive/refs/tags/3.1.3.tar.gz libjpeg.a "LICENSE.md;README.ijg"
  -DENABLE_SHARED=OFF -DWITH_TURBOJPEG=OFF -DWITH_TOOLS=OFF -DWITH_TESTS=OFF -DREQUIRE_SIMD=ON)
_swsl_codec(PNG libpng 1.6.58 a9d4df463d36a6e5f9c29bd6f4967312d17e996c1854f3511f833924eb1993cf
  https://github.com/pnggroup/libpng/archive/refs/tags/v1.6.58.tar.gz libpng16.a LICENSE
  -DPNG_SHARED=OFF -DPNG_TESTS=OFF -DPNG_TOOLS=OFF)
set_property(TARGET PNG::PNG PROPERTY INTERFACE_LINK_LIBRARIES ZLIB::ZLIB)
